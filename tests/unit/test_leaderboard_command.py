"""The options of `rkd leaderboard`, on made-up runs."""

import csv
import json

import pytest
from fake_boards import adaptive, fast, put, run

from robustbench_kd.analysis.table import PUBLISHED


@pytest.fixture
def results(tmp_path):
    """Stored runs.

    Three digits runs, one of them an ensemble, one in fast mode, one on another data set.
    """
    folder = tmp_path / "results"
    family = {"family": "ensemble"}
    for record in (
        run("a", 0.3),
        run("b", 0.5, **family),
        run("c", 0.4),
        fast("d"),
        run("e", 0.1, dataset="mnist"),
    ):
        put(folder, record)
    return folder


def shown(told):
    """The models of the tables on standard output, in order."""
    assert told.code == 0, told.stderr
    lines = [line.split() for line in told.stdout.splitlines()]
    return [words[1] for words in lines if words and words[0].isdecimal()]


def test_the_default_files_are_csv_and_markdown(rkd, results):
    told = rkd("leaderboard", results)
    assert sorted(path.name for path in results.glob("leaderboard.*")) == [
        "leaderboard.csv",
        "leaderboard.md",
    ]
    assert told.stderr.strip().endswith(
        f"{results / 'leaderboard.csv'} and {results / 'leaderboard.md'} written"
    )


def test_every_format_can_be_written_at_once(rkd, results):
    rkd(
        "leaderboard",
        results,
        "--format",
        "csv, markdown,html,latex,json,robustbench,huggingface,csv",
    )
    suffixes = {"csv", "md", "html", "tex", "json", "robustbench.json", "huggingface.yaml"}
    assert {path.name for path in results.glob("leaderboard.*")} == {
        f"leaderboard.{suffix}" for suffix in suffixes
    }


def test_runs_are_chosen_sorted_and_cut_on_screen_and_in_files(rkd, results):
    where = ("--where", "dataset=digits", "--where", "mode=exact")
    assert shown(rkd("leaderboard", results, *where)) == ["b", "c", "a"]
    told = rkd(
        "leaderboard",
        results,
        *where,
        "--where",
        "family=classifier",
        "--sort",
        "model",
        "--top",
        1,
    )
    assert shown(told) == ["a"]
    rows = list(csv.DictReader((results / "leaderboard.csv").read_text().splitlines()))
    assert {row["model"] for row in rows} == {"a"}


def test_conditions_on_one_key_are_alternatives(rkd, results):
    assert shown(rkd("leaderboard", results, "--where", "model=a", "--where", "model=e")) == [
        "a",
        "e",
    ]


def test_a_fast_run_is_labelled_on_screen(rkd, results):
    told = rkd("leaderboard", results, "--where", "mode=fast")
    assert "standard by autoattack, fast" in told.stdout
    assert "fast, may miss up to 1.5 points" in told.stdout


def test_an_adaptive_run_shows_the_gap_on_screen(rkd, tmp_path):
    record = adaptive(standard=0.91, robust=0.18)
    put(tmp_path, record)
    told = rkd("leaderboard", tmp_path)
    assert "AutoAttack %" in told.stdout
    assert "73.0" in told.stdout


def test_published_numbers_are_shown_beneath_and_counted(rkd, results, tmp_path):
    place = tmp_path / "model_info" / "digits" / "Linf"
    place.mkdir(parents=True)
    known = {"dataset": "digits", "eps": 0.2, "clean_acc": "95", "autoattack_acc": "70"}
    (place / "Theirs2024.json").write_text(json.dumps(known))
    (place / "Elsewhere2024.json").write_text(json.dumps(known | {"dataset": "svhn"}))
    (place / "Broken2024.json").write_text("{}")
    told = rkd("leaderboard", results, "--published", tmp_path / "model_info", "--where", "model=a")
    assert told.stdout.splitlines()[3].split() == ["Theirs2024", "95.0", "70.0", *PUBLISHED.split()]
    assert "1 of 2 published numbers are for a data set and threat shown here" in told.stderr
    assert "left out: '" in told.stderr
    assert "Broken2024.json' holds no published number" in told.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "model"], "expected --where KEY=VALUE, got 'model'"),
        (["--where", "datset=digits"], "unknown key of --where 'datset': did you mean 'dataset'?"),
        (["--where", "threat=8/255"], "expected a threat NORM:EPS"),
        (["--sort", "speed"], "unknown order 'speed'"),
        (["--format", "markdwon"], "unknown format 'markdwon': did you mean 'markdown'?"),
        (["--published", "nowhere"], "there is no 'nowhere'"),
        (["--top", "0"], "0 is not in the range x>=1"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(rkd, results, arguments, message):
    assert message in rkd("leaderboard", results, *arguments).error(2)
    assert not list(results.glob("leaderboard.*"))


def test_hostile_names_are_no_markup_on_screen(rkd, tmp_path):
    record = run("[red]x[/red]", dataset="[bold]y")
    put(tmp_path, record)
    told = rkd("leaderboard", tmp_path)
    assert "[red]x[/red]" in told.stdout
    assert "[bold]y, 200 examples" in told.stdout


def test_json_on_standard_output_follows_the_view(rkd, results):
    told = rkd("leaderboard", results, "--json", "--where", "dataset=digits", "--top", 1)
    assert [one["identity"]["model"] for one in json.loads(told.stdout)] == ["b", "d"]


def test_a_leaderboard_without_runs_says_so(rkd, results, tmp_path):
    told = rkd("leaderboard", results, "--where", "model=z")
    assert (told.code, told.stdout) == (0, "")
    assert f"there is no finished run that --where asks for under '{results}'" in told.stderr
    (tmp_path / "empty").mkdir()
    for command in (["leaderboard"], ["report"], ["log", "--to", "tensorboard"]):
        told = rkd(*command, tmp_path / "empty")
        assert (told.code, "there is no finished run under" in told.stderr) == (0, True)
