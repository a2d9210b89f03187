"""Leaderboards from files alone: order, ties, separate tables, and names that mean harm."""

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.analysis.formats import csv as tidy
from robustbench_kd.analysis.formats import markdown
from robustbench_kd.analysis.leaderboard import Leaderboard, rank, read_leaderboard
from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.records import Accuracy, Identity, RunRecord, Stage, attack_rows
from robustbench_kd.core.rundir import RECORD, run_folder, write_interrupted, write_record
from robustbench_kd.core.statistics import interval


def accuracy(share, n=200):
    low, high = interval(round(share * n), n)
    return Accuracy(value=share, n=n, ci_low=low, ci_high=high)


def run(model="net", robust=0.5, clean=0.9, **identity):
    known = {
        "model": model,
        "family": "classifier",
        "architecture": "small_cnn",
        "normalisation": "none",
        "checkpoint_sha256": "0",
        "dataset": "digits",
        "data_fingerprint": "0",
        "examples": 200,
        "norm": "linf",
        "eps": 0.2,
        "eps_text": "0.2",
        "suite": "standard",
        "attacks": ["apgd-ce", "square"],
        "engine": "autoattack",
        "seed": 0,
        "batch_size": 250,
        "device": "cpu",
        "versions": {"torch": "2.10.0"},
    }
    asked = Identity.model_validate(known | identity)
    stages = [("clean", clean, 200, 0), ("apgd-ce", robust, 18_180, 18_180), ("square", robust, 500_200, 0)]
    return RunRecord(
        run_id=asked.run_id(),
        status="complete",
        identity=asked,
        protocol_hash=asked.protocol_hash(),
        clean=accuracy(clean),
        robust=accuracy(robust),
        stages=[
            Stage(stage=name, accuracy=accuracy(left), forwards=forwards, backwards=backwards, seconds=1.5)
            for name, left, forwards, backwards in stages
        ],
        forwards=518_580,
        backwards=18_180,
        seconds=4.5,
        verdict="consistent",
        parameters=6_882,
    )


def store(results, record):
    folder = run_folder(results, record.identity.model, record.run_id)
    write_record(folder, record, [])
    return folder


def models(board):
    return [record.identity.model for record in board.records]


def test_the_most_robust_stands_first_and_equals_share_a_rank():
    (board,) = rank([run("a", 0.3), run("b", 0.5, clean=0.8), run("c", 0.5, clean=0.9), run("d", 0.1)])
    assert models(board) == ["c", "b", "a", "d"]
    assert board.ranks == (1, 1, 3, 4)


@given(st.permutations([run("a", 0.3), run("b", 0.5), run("b", 0.5, seed=1), run("c", 0.2), run("d", 0.3, norm="l2")]))
def test_the_order_in_which_files_are_found_does_not_matter(records):
    assert rank(records) == rank(reversed(records))


@pytest.mark.parametrize(
    "difference",
    [
        {"dataset": "mnist"},
        {"data_fingerprint": "1", "examples": 100},
        {"norm": "l2"},
        {"eps": 0.1, "eps_text": "0.1"},
        {"suite": "plus"},
        {"engine": "cascade"},
    ],
)
def test_what_must_not_be_ranked_together_stands_in_tables_of_its_own(difference):
    assert len(rank([run("a"), run("b", **difference)])) == 2


def test_seeds_batch_sizes_and_spellings_of_a_radius_are_ranked_together():
    (board,) = rank([run("a", seed=1), run("b", batch_size=10), run("c", eps_text="1/5")])
    assert models(board) == ["a", "b", "c"]


def test_tables_stand_in_the_order_of_data_norm_and_radius():
    boards = rank([run(eps=0.3, eps_text="0.3"), run(), run(norm="l2"), run(dataset="cifar10")])
    assert [board.title.split(",")[0] + board.title.split(",")[2] for board in boards] == [
        "cifar10 linf 0.2",
        "digits l2 0.2",
        "digits linf 0.2",
        "digits linf 0.3",
    ]


def test_stored_runs_are_found_and_read(tmp_path):
    for record in (run("a", 0.3), run("b/c", 0.5)):
        store(tmp_path, record)
    found = read_leaderboard(tmp_path)
    assert [models(board) for board in found.boards] == [["b/c", "a"]]
    assert found.left_out == ()


def test_what_cannot_be_ranked_is_left_out_and_named(tmp_path):
    broken = store(tmp_path, run("broken"))
    (broken / RECORD).write_text("{")
    unfinished = run("unfinished").model_copy(update={"status": "interrupted", "robust": None})
    write_interrupted(run_folder(tmp_path, "unfinished", unfinished.run_id), unfinished)
    store(tmp_path, run("good"))
    found = read_leaderboard(tmp_path)
    assert [models(board) for board in found.boards] == [["good"]]
    assert len(found.left_out) == 2
    assert "is not a run record" in found.left_out[0]
    assert "is unfinished: run the same 'rkd eval' again to resume it" in found.left_out[1]


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_results_folder_that_is_none_is_an_error(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match=r"there is no results folder .*: run 'rkd eval' first"):
        read_leaderboard(tmp_path / name)


def test_an_empty_folder_is_an_empty_leaderboard(tmp_path):
    found = read_leaderboard(tmp_path)
    assert found == Leaderboard((), ())
    assert "No finished runs." in markdown.render(found)
    assert tidy.render(found).count("\n") == 1


def leaderboard(*records):
    return Leaderboard(tuple(rank(records)), ())


def example():
    return leaderboard(
        run("teacher", 0.76, clean=0.98),
        run("small|student", 0.71, clean=0.97, versions={"torch": "2.11.0"}),
        run("plain", 0.0, clean=0.99),
        run("teacher", 0.6, clean=0.98, norm="l2", eps=0.5, eps_text="1/2"),
    )


def test_markdown_looks_as_it_should(golden):
    golden("leaderboard.md", markdown.render(example()))


def test_csv_looks_as_it_should(golden):
    golden("leaderboard.csv", tidy.render(example()))


def test_csv_is_one_row_per_run_and_stage():
    read = list(csv.DictReader(io.StringIO(tidy.render(example()))))
    assert len(read) == 4 * 4
    assert {row["stage"] for row in read} == {"clean", "apgd-ce", "square", "final"}
    assert {float(row["accuracy"]) for row in read if row["stage"] == "final" and row["model"] == "teacher"} == {
        0.76,
        0.6,
    }


HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "two\nlines",
    "two\r\n| rows |",
    "[link](http://example.com)",
    "![image](x)",
    "**bold** _it_ ~no~ `code`",
    "# heading",
    "back\\slash\\|",
    "&lt;",
    "\x1b[31m",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_takes_no_name_for_markup(name):
    text = markdown.render(leaderboard(run(name, dataset=name)))
    assert_plain(text, rows=1)


@given(st.text(max_size=30), st.text(max_size=10))
def test_markdown_takes_no_text_whatever_for_markup(name, run_id):
    record = run(name).model_copy(update={"run_id": run_id})
    assert_plain(markdown.render(leaderboard(record)), rows=1)


def assert_plain(text, rows):
    """One table of ten columns; nothing unescaped that Markdown or HTML could take for markup."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + rows
    for line in lines[2:]:
        cells = re.sub(r"\\[!-/:-@\[-`{-~]", "", line)
        assert cells.count("|") == 11
        assert not re.search(r"[<>`*_#!~&\\(){}]", cells)
    assert "<" not in re.sub(r"\\<", "", text)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_reads_back_from_csv(name):
    record = run(name)
    read = list(csv.DictReader(io.StringIO(tidy.render(leaderboard(record)), newline="")))
    assert [row["model"] for row in read] == [record.identity.model] * len(attack_rows(record))
