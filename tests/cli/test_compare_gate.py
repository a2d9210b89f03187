"""`rkd compare` and `rkd gate`.

Exit codes, files written before them, and names that no reader of the output obeys.
"""

import json
import re
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest
from fake_runs import Planted, store

from robustbench_kd.core.rundir import EXAMPLES, RECORD

OLD = Planted(1000, broken=frozenset(range(500, 1000)))
WORSE = Planted(1000, broken=frozenset(range(470, 1000)))
ARTEFACTS = ("junit", "markdown", "badge")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in, outside of any CI."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def changed(place):
    """Makes a baseline and results of one model, which became worse if so asked."""

    def make(new=WORSE, **fields):
        store(place / "baseline", OLD, checkpoint_sha256="old", **fields)
        return store(place / "results", new, checkpoint_sha256="new", **fields)

    return make


def gate(rkd, *arguments):
    return rkd("gate", "results", "--baseline", "baseline", *arguments)


def asked(place):
    return [part for name in ARTEFACTS for part in (f"--{name}", place / "out" / name)]


def test_a_comparison_is_a_table_with_marks_and_ids(rkd, changed):
    changed()
    told = rkd("compare", "baseline/net", "results/net")
    assert told.code == 0
    assert re.search(
        r"^- +robust +50\.0 +47\.0 +-3\.0 \[-4\.1, -1\.9\] +30 +0 +<0\.001$",
        told.stdout,
        re.MULTILINE,
    )
    assert re.search(r"^= +clean ", told.stdout, re.MULTILINE)
    assert "lost    470, 471, " in told.stdout
    assert "and 10 more" in told.stdout
    assert "gained  none" in told.stdout


def test_a_comparison_in_json_and_markdown_says_the_same(rkd, changed):
    changed()
    found = json.loads(rkd("compare", "baseline/net", "results/net", "--json").stdout)
    assert found["stages"][-1]["lost"] == list(range(470, 500))
    text = rkd("compare", "baseline/net", "results/net", "--format", "markdown").stdout
    assert "| `-` | `robust` | 50.0 | 47.0 | -3.0 [-4.1, -1.9] | 30 | 0 | <0.001 |" in text
    both = rkd("compare", "a", "b", "--json", "--format", "markdown")
    assert "expected one of --json and --format markdown" in both.error(2)


def test_runs_that_answer_different_questions_are_refused_with_exit_code_4(rkd, changed, place):
    changed()
    store(place / "other", OLD, norm="l2", eps=0.5, eps_text="1/2")
    said = rkd("compare", "baseline/net", "other/net").error(4)
    assert "not comparable: norm linf against l2; eps 8/255 against 1/2" in said


def test_a_name_that_is_no_run_is_one_clear_line(rkd, place):
    assert "there is no run 'nowhere': expected a run directory" in rkd(
        "compare", "nowhere", "nowhere"
    ).error(2)


def test_a_gate_fails_after_all_is_written(rkd, changed, place):
    changed()
    said = gate(rkd, *asked(place)).error(1)
    assert said.startswith("the gate failed: 1 regression; net, digits, 1000 examples")
    out = place / "out"
    assert ET.parse(out / "junit").getroot().get("failures") == "1"
    assert (out / "markdown").read_text().startswith("### Robustness gate failed: 1 regression\n")
    assert json.loads((out / "badge").read_text())["color"] == "red"


def test_a_gate_passes_where_nothing_became_worse(rkd, changed, place):
    changed(OLD)
    store(place / "results", OLD, model="new one")
    told = gate(rkd, *asked(place))
    assert (told.code, told.stderr) == (0, "")
    assert "Robustness gate passed\n* new one, digits" in told.stdout
    assert {path.name for path in (place / "out").iterdir()} == set(ARTEFACTS)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--tolerance", "3%"], 0),
        (["--tolerance", "0.03"], 0),
        (["--tolerance", "2.9%"], 1),
        (["--tolerance", "50%", "--hard-limit", "2.9 %"], 1),
        (["--tolerance", "50%", "--hard-limit", "3%"], 0),
        (["--alpha", "1e-12"], 0),
    ],
)
def test_limits_are_fractions_or_percentages_and_what_equals_one_passes(
    rkd, changed, arguments, code
):
    changed()
    assert gate(rkd, *arguments).code == code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--tolerance", "1"],
            "expected --tolerance as a percentage .* below 1, .* got '1': did you mean 1%?",
        ),
        (["--tolerance", "50", "--hard-limit", "3%"], "did you mean 50%?"),
        (["--tolerance", "50%", "--hard-limit", "200%"], "expected --hard-limit .* got '200%'$"),
        (["--tolerance", "-1%"], "expected --tolerance .* got '-1%'$"),
        (["--tolerance", "nan"], "expected --tolerance"),
        (["--tolerance", "1e999999999"], "expected --tolerance"),
        (["--hard-limit", "five"], "expected --hard-limit"),
        (["--alpha", "0"], "expected --alpha above 0"),
        (["--baseline", "results/../results"], "expected a baseline apart from the results"),
        (
            ["--baseline", "nowhere"],
            "there is no run in the baseline 'nowhere': make one with .* --update",
        ),
    ],
)
def test_limits_and_folders_that_make_no_sense_are_one_clear_line(rkd, changed, arguments, said):
    changed()
    assert re.search(said, gate(rkd, *arguments).error(2))


def test_results_that_are_not_there_are_one_clear_line(rkd, place):
    assert "there is no results folder 'results': run 'rkd eval' first" in gate(rkd).error(2)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / RECORD).unlink(), "in the baseline, but not among the results"),
        (lambda folder: (folder / EXAMPLES).write_text("x"), "not among the results"),
        (lambda folder: (folder / RECORD).write_text("{"), "not among the results"),
    ],
)
def test_a_run_that_is_missing_or_damaged_is_exit_code_4_after_all_is_written(
    rkd, changed, place, damage, said
):
    damage(changed(OLD))
    told = gate(rkd, *asked(place))
    assert said in told.error(4)
    assert {path.name for path in (place / "out").iterdir()} == set(ARTEFACTS)
    assert "x net, digits, 1000 examples" in told.stdout


def test_a_damaged_baseline_is_an_error(rkd, changed, place):
    changed()
    (path,) = (place / "baseline").rglob(EXAMPLES)
    path.write_text("x")
    assert "the baseline is damaged: 'baseline/net/" in gate(rkd).error(2)


def test_an_update_shows_the_difference_and_then_the_gate_passes(rkd, changed):
    changed()
    told = gate(rkd, "--update")
    assert told.code == 0
    assert "Robustness gate failed: 1 regression" in told.stdout
    assert re.search(r"net linf:8/255: 'baseline/net/\w+' replaces '\w+'", told.stderr)
    assert gate(rkd).code == 0


def test_the_first_update_makes_the_baseline_and_damaged_results_are_said(rkd, place):
    store(place / "results", OLD)
    (store(place / "results", OLD, model="bad") / EXAMPLES).unlink()
    assert "the baseline lacks what cannot be read: cannot read 'results/bad/" in gate(
        rkd, "--update"
    ).error(4)
    assert len(list((place / "baseline").rglob(RECORD))) == 1


def test_nothing_makes_no_baseline(rkd, place):
    (place / "results").mkdir()
    assert "there is no run to make a baseline of in 'results': run 'rkd eval' first" in gate(
        rkd, "--update"
    ).error(2)


def test_what_failed_comes_with_the_command_that_shows_the_images(rkd, changed):
    changed()
    (line,) = (line for line in gate(rkd).stdout.splitlines() if line.startswith("  rkd compare "))
    assert "lost    470, 471" in rkd(*line.split()[1:]).stdout


def test_two_runs_for_one_place_in_the_baseline_are_refused_before_anything_is_written(rkd, place):
    for seed in (0, 1):
        store(place / "results", OLD, seed=seed)
    assert "expected one run of 'net'" in gate(rkd, "--update").error(4)
    assert not (place / "baseline").exists()


HOSTILE = "::error::x ##[set-output name=a]b [red]%0A@all`|<b>"


def test_under_github_actions_names_are_fenced_and_failures_annotated(
    rkd, changed, place, monkeypatch
):
    changed(model=HOSTILE)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place / "summary.md"))
    (place / "summary.md").write_text("before\n")
    lines = gate(rkd, "--markdown", "comment.md")
    assert lines.code == 1
    first, *rest = lines.stdout.splitlines()
    token = re.fullmatch(r"::stop-commands::([0-9a-f]{32})", first)[1]
    (end,) = (number for number, line in enumerate(rest) if line == f"::{token}::")
    assert sum(HOSTILE in line for line in rest[:end]) == 3  # two rows of the table and what failed
    (annotation,) = rest[end + 1 :]
    head, text = annotation.removeprefix("::").split("::", 1)
    assert head.startswith("error title=%3A%3Aerror%3A%3Ax ##[set-output name=a]b [red]%250A@all")
    assert "%250A" in text
    assert (place / "summary.md").read_text() == "before\n" + (place / "comment.md").read_text()


def test_outside_of_github_actions_no_annotation_is_written(rkd, changed):
    changed()
    assert "::" not in gate(rkd).stdout


def test_a_gate_in_json_is_nothing_else(rkd, changed, monkeypatch):
    changed()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    told = gate(rkd, "--json")
    assert told.code == 1
    assert json.loads(told.stdout)["outcome"] == "failed: 1 regression"


@pytest.mark.parametrize("form", [["--format", "table"], ["--format", "markdown"], ["--json"]])
def test_hostile_names_are_shown_as_they_are(rkd, changed, form):
    changed(model=HOSTILE)
    run = "baseline/error-x-set-output-name-a-b-red-0A-all-b"
    told = rkd("compare", run, run.replace("baseline", "results"), *form)
    assert told.code == 0
    assert HOSTILE.replace("|", "\\|" if "markdown" in form else "|") in told.stdout


def test_a_comparison_and_a_gate_load_no_torch(changed):
    changed(OLD)
    program = (
        "import sys\nfrom robustbench_kd.cli import main\n"
        "for arguments in (['compare', 'baseline/net', 'results/net'], ['gate', '--baseline', "
        "'baseline']):\n"
        "    try:\n        main(arguments)\n    except SystemExit as end:\n        assert not "
        "end.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode
        == 0
    )
