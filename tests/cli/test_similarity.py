"""`rkd similarity`: what it prints, what it writes, and how it ends."""

import csv
import json
from pathlib import Path

import pytest

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


@pytest.fixture
def compared(rkd, factories, tmp_path):
    """Runs the command on twenty digits, with tables in `tmp_path / "out"`."""

    def run(*arguments):
        known = {
            "dataset": "digits",
            "examples": 20,
            "threat": "linf:0.1",
            "results": tmp_path / "results",
        }
        options = [part for name, value in known.items() for part in (f"--{name}", value)]
        return rkd("similarity", *arguments, *options, "--out", tmp_path / "out")

    def named(*names, more=()):
        first, second, *baselines = (f"{factories}:{name}" for name in names)
        return run(
            first, second, *(part for text in baselines for part in ("--baseline", text)), *more
        )

    return named


def written(tmp_path, name="linear-of-nearest_mean"):
    place = tmp_path / "out" / name
    with (place / "similarity.csv").open(newline="") as file:
        return list(csv.DictReader(file)), (place / "similarity.md").read_text()


def test_a_student_is_compared_and_tables_are_written(compared, tmp_path):
    told = compared("nearest_mean", "linear")
    assert told.code == 0, told.stderr
    assert "digits, 20 examples, transferred attacks linf:0.1, seed 0" in told.stdout
    assert "teacher's answer on edges" in told.stdout
    assert "no runs of both" in told.stderr
    rows, markdown = written(tmp_path)
    assert {(row["model"], row["role"]) for row in rows} == {
        ("nearest_mean", "teacher"),
        ("linear", "student"),
    }
    assert all(row["difference"] == "" for row in rows)
    assert "| measure | teacher | student |\n" in markdown
    assert "Networks: teacher `nearest_mean`, student `linear`." in markdown


def test_an_independent_network_gives_differences_and_a_second_one_the_null(compared, tmp_path):
    told = compared("nearest_mean", "linear", "linear", "nearest_mean")
    heading = next(line for line in told.stdout.splitlines() if line.startswith("measure"))
    assert "student - independent" in heading
    assert "null - independent" in heading
    rows, _ = written(tmp_path)
    differences = {(row["role"], row["measure"]): row["difference"] for row in rows}
    assert float(differences["student", "teacher's answer"]) == 0
    assert float(differences["null", "teacher's answer"]) > 0
    assert differences["independent", "teacher's answer"] == ""


def test_json_has_the_rows_of_the_table(compared, tmp_path):
    found = json.loads(compared("nearest_mean", "linear", more=("--json",)).stdout)
    rows, _ = written(tmp_path)
    assert [(row["measure"], row["role"]) for row in found] == [
        (row["measure"], row["role"]) for row in rows
    ]
    assert [f"{row['value']}" for row in found if row["value"] is not None] == [
        r["value"] for r in rows if r["value"]
    ]


def test_the_same_command_writes_the_same_files(compared, tmp_path):
    compared("nearest_mean", "linear", "linear")
    first = written(tmp_path)
    compared("nearest_mean", "linear", "linear")
    assert written(tmp_path) == first


def test_stored_runs_of_both_are_read(rkd, compared, factories, tmp_path):
    for name in ("nearest_mean", "linear"):
        few = [
            "--dataset",
            "digits",
            "--examples",
            20,
            "--suite",
            "apgd-ce",
            "--threat",
            "linf:0.05",
        ]
        assert rkd("eval", f"{factories}:{name}", *few, "--results", tmp_path / "results").code == 0
    told = compared("nearest_mean", "linear")
    assert "robustness retained" in told.stdout
    rows, markdown = written(tmp_path)
    (teacher,) = (
        row for row in rows if row["measure"] == "robust accuracy" and row["role"] == "teacher"
    )
    assert teacher["n"] == "20.0"
    assert "linf 0.05" in teacher["protocol"]
    assert f"## `{teacher['protocol']}`" in markdown


def test_the_shipped_cards_need_no_options(rkd, tmp_path):
    cards = [CHECKPOINTS / f"digits-{name}.toml" for name in ("teacher", "small")]
    told = rkd("similarity", *cards, "--examples", 20, "--out", tmp_path, "--results", tmp_path)
    assert told.code == 0, told.stderr
    assert "transferred attacks linf:0.1" in told.stdout
    assert "attention cosine" in told.stdout


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("nearest_mean", "linear", "linear", "linear", "linear"),
            "expected at most two --baseline, got 3",
        ),
        (
            ("nearest_mean", "three_classes"),
            "'three_classes' has 3 classes, the data set has 10",
        ),
        (("nearest_mean", "detached"), "'detached' cannot be compared, as it gives no gradient"),
        (("nearest_mean", "nan_logits"), "NaN or infinite logits"),
    ],
)
def test_what_cannot_be_compared_ends_in_one_line(compared, names, message):
    assert message in compared(*names).error(2)


def test_a_teacher_without_a_card_needs_a_threat(rkd, factories):
    told = rkd("similarity", f"{factories}:linear", f"{factories}:linear", "--dataset", "digits")
    assert "which threat for 'linear'? Give --threat NORM:EPS" in told.error(2)


def test_a_folder_of_several_is_refused(rkd):
    told = rkd("similarity", CHECKPOINTS, CHECKPOINTS)
    assert "checkpoints: name one of them" in told.error(2)
