"""Runs as earlier versions of the package stored them: each shape of a record still reads."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from robustbench_kd.analysis.leaderboard import read_leaderboard
from robustbench_kd.analysis.runs import read_runs
from robustbench_kd.core.examples import read_examples
from robustbench_kd.core.records import Finding, Identity, RunRecord
from robustbench_kd.core.rows import AttackRow, attack_rows
from robustbench_kd.core.rundir import ATTACKS, EXAMPLES, FINDINGS, RECORD, read_record, to_csv

RECORDS = Path(__file__).parents[1] / "golden" / "records"
# The folder of each shape, what it lacks, and its number of images, clean and robust ones.
SHAPES = {
    "1-first": (
        {
            "standard",
            "clean_draws",
            "robust_draws",
            "detection",
            "missed",
            "claim",
            "source",
            "identity.adaptive",
            "identity.carried",
        },
        (500, 0.982, 0.002),
    ),
    "2-adaptive": ({"detection", "claim", "source"}, (50, 0.976, 0.072)),
    "3-detection": ({"claim", "source"}, (50, 0.98, 0.82)),
    "4-claim": ({"source"}, (20, 0.951, 0.294)),
    "5-source": (set(), (20, 0.95, 0.75)),
}

shapes = pytest.mark.parametrize("shape", SHAPES)


def folder_of(shape):
    (path,) = RECORDS.glob(f"{shape}/*/*/{RECORD}")
    return path.parent


def lacking(folder):
    """Returns the fields of today's record that a stored one does not name."""
    stored = json.loads((folder / RECORD).read_text())
    missing = RunRecord.model_fields.keys() - stored.keys()
    of_identity = Identity.model_fields.keys() - stored["identity"].keys()
    return missing | {f"identity.{name}" for name in of_identity}


def test_every_stored_shape_is_listed():
    assert sorted(path.name for path in RECORDS.iterdir()) == sorted(SHAPES)


@shapes
def test_a_shape_lacks_the_fields_that_were_added_later(shape):
    """The newest shape has every field: a new field needs a stored run of the shape before it."""
    assert lacking(folder_of(shape)) == SHAPES[shape][0]


@shapes
def test_what_a_record_lacks_takes_its_default(shape):
    record = read_record(folder_of(shape) / RECORD)
    for name in SHAPES[shape][0]:
        part, _, field = name.rpartition(".")
        holder = record.identity if part else record
        default = type(holder).model_fields[field].get_default(call_default_factory=True)
        assert getattr(holder, field) == default


@shapes
def test_a_run_keeps_its_numbers(shape):
    n, clean, robust = SHAPES[shape][1]
    record = read_record(folder_of(shape) / RECORD)
    assert record.schema_version == 1
    assert (record.clean.n, record.robust.n) == (n, n)
    assert (record.clean.value, record.robust.value) == pytest.approx((clean, robust))
    assert record.identity.protocol_hash() == record.protocol_hash


@shapes
def test_examples_read_and_agree_with_the_record(shape):
    folder = folder_of(shape)
    rows = read_examples(folder / EXAMPLES)
    (run,), problems = read_runs(folder.parents[1])
    assert problems == []
    assert list(run.examples.values()) == rows
    assert len(rows) == run.record.clean.n


@shapes
def test_the_other_files_follow_from_the_record(shape):
    folder = folder_of(shape)
    record = read_record(folder / RECORD)
    findings = TypeAdapter(list[Finding]).validate_json((folder / FINDINGS).read_bytes())
    assert findings == record.findings
    assert (folder / ATTACKS).read_text() == to_csv(attack_rows(record), AttackRow)


@shapes
def test_a_leaderboard_ranks_a_run(shape):
    leaderboard = read_leaderboard(RECORDS / shape)
    (board,) = leaderboard.boards
    assert leaderboard.left_out == ()
    assert board.records == (read_record(folder_of(shape) / RECORD),)


def test_only_the_run_ids_of_the_first_shape_have_changed():
    """Two fields of the identity came later, so the same question has another run id by now."""
    for shape in SHAPES:
        record = read_record(folder_of(shape) / RECORD)
        unchanged = record.identity.run_id() == record.run_id == folder_of(shape).name
        assert unchanged == (shape != "1-first")
