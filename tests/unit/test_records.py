"""Records: round trips, run ids that never drift, what may be ranked together."""

import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from robustbench_kd.core.examples import to_text
from robustbench_kd.core.records import (
    Accuracy,
    Finding,
    Identity,
    RunRecord,
    Severity,
    StageResult,
)
from robustbench_kd.core.rows import AttackRow, ExampleRow, attack_rows
from robustbench_kd.core.rundir import to_csv
from robustbench_kd.core.verdicts import verdict

IDENTITY = Identity(
    model="net",
    family="classifier",
    architecture="small_cnn width=8",
    normalisation="none",
    checkpoint_sha256="a" * 64,
    dataset="digits",
    data_fingerprint="b" * 64,
    examples=100,
    norm="linf",
    eps=8 / 255,
    eps_text="8/255",
    suite="standard",
    attacks=["apgd-ce", "apgd-t", "fab-t", "square"],
    engine="autoattack",
    seed=0,
    batch_size=250,
    device="cpu",
    versions={"torch": "2.10.0"},
)
OTHER = {
    "model": "net2",
    "family": "other",
    "architecture": "small_cnn width=9",
    "normalisation": "0.5/0.5",
    "checkpoint_sha256": "c" * 64,
    "code_sha256": "d" * 64,
    "dataset": "npz:x.npz",
    "data_fingerprint": "e" * 64,
    "examples": 99,
    "norm": "l2",
    "eps": 0.5,
    "eps_text": "0.5",
    "suite": "rand",
    "attacks": ["apgd-ce"],
    "engine": "cascade",
    "mode": "fast",
    "seed": 1,
    "batch_size": 100,
    "device": "cuda",
    "precision": "bf16",
    "adaptive": ["backbone:apgd-ce"],
    "carried": "0123456789abcdef",
    "versions": {"torch": "2.11.0"},
}
RANKED_BY = {
    "dataset",
    "data_fingerprint",
    "norm",
    "eps",
    "suite",
    "attacks",
    "engine",
    "mode",
    "precision",
}
HALF = Accuracy(value=0.5, n=100, ci_low=0.4, ci_high=0.6)
names = st.text(max_size=20)
seconds = st.floats(min_value=0, allow_nan=False, allow_infinity=False)


def record(**changes):
    stage = StageResult(stage="clean", accuracy=HALF, forwards=100, backwards=0, seconds=0.25)
    known = {
        "run_id": IDENTITY.run_id(),
        "status": "complete",
        "identity": IDENTITY,
        "stages": [stage],
        "robust": HALF,
    }
    return RunRecord.model_validate({"protocol_hash": IDENTITY.protocol_hash(), **known, **changes})


def test_the_run_id_of_a_question_never_changes():
    """A different id here means that nobody's stored results are found again.

    Raise the schema version.
    """
    assert IDENTITY.run_id() == "d9fb4ba3b0b46dee"
    assert IDENTITY.protocol_hash() == "17fe4ee2162cb427"


def test_the_run_id_changes_with_every_field_of_the_identity():
    assert set(OTHER) == set(Identity.model_fields)
    ids = {IDENTITY.model_copy(update={name: value}).run_id() for name, value in OTHER.items()}
    assert len(ids | {IDENTITY.run_id()}) == len(OTHER) + 1


@pytest.mark.parametrize("field", sorted(OTHER))
def test_runs_are_ranked_together_unless_data_threat_suite_or_engine_differ(field):
    changed = IDENTITY.model_copy(update={field: OTHER[field]})
    assert (changed.protocol_hash() != IDENTITY.protocol_hash()) == (field in RANKED_BY)


@given(names, seconds, st.lists(st.text(max_size=5), max_size=3))
def test_a_record_reads_back_equal(name, seconds, said):
    findings = [
        Finding(check=text, severity=Severity.RED, message=text, value=seconds) for text in said
    ]
    identity = IDENTITY.model_copy(update={"eps_text": name})
    written = record(identity=identity, seconds=seconds, findings=findings)
    assert RunRecord.model_validate_json(written.model_dump_json(indent=2)) == written


def test_a_record_is_strict_json_even_where_a_number_is_infinite():
    def refuse(constant):
        raise AssertionError(constant)

    endless = Finding(check="x", severity=Severity.RED, message="y", value=math.inf)
    json.loads(record(findings=[endless]).model_dump_json(), parse_constant=refuse)


@pytest.mark.parametrize("path", [(), ("identity",), ("robust",), ("stages", 0)])
def test_an_unknown_field_is_refused(path):
    content = record().model_dump(mode="json")
    place = content
    for step in path:
        place = place[step]
    place["surprise"] = 1
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        RunRecord.model_validate(content)


def test_a_record_of_another_schema_is_refused():
    with pytest.raises(ValidationError, match="schema_version"):
        record(schema_version=2)


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        record().seconds = 1.0


@pytest.mark.parametrize(
    ("severities", "expected"),
    [
        ([], "consistent"),
        ([Severity.INFO], "consistent"),
        ([Severity.INFO, Severity.YELLOW], "suspicious"),
        ([Severity.RED, Severity.YELLOW], "unreliable"),
    ],
)
def test_the_worst_finding_makes_the_verdict(severities, expected):
    assert (
        verdict([Finding(check="x", severity=severity, message="y") for severity in severities])
        == expected
    )


def test_the_tidy_rows_are_the_stages_and_a_final_one():
    clean, final = attack_rows(record(forwards=7, backwards=8, seconds=9.0))
    assert (clean.stage, clean.accuracy, clean.n, clean.forwards) == ("clean", 0.5, 100, 100)
    assert (final.stage, final.accuracy, final.forwards, final.backwards, final.seconds) == (
        "final",
        0.5,
        7,
        8,
        9.0,
    )
    assert {row.run for row in (clean, final)} == {IDENTITY.run_id()}


def test_an_unfinished_run_has_no_tidy_rows():
    assert attack_rows(record(robust=None, status="interrupted")) == []


HOSTILE = [
    "a,b",
    'say "no"',
    "two\nlines",
    "two\rlines",
    "tab\there",
    "\x1b[31mred",
    "\x00",
    "\ud800",
    "a|b",
    "ü",
    " x ",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_one_cell_of_one_line(name):
    rows = [
        row.model_copy()
        for row in attack_rows(
            record(identity=Identity(**{**IDENTITY.model_dump(), "model": name}))
        )
    ]
    text = to_csv(rows, AttackRow)
    assert len(text.splitlines()) == 3
    assert [row["model"] for row in csv.DictReader(io.StringIO(text, newline=""))] == [
        rows[0].model
    ] * 2


@given(names)
def test_a_printable_name_is_kept_as_it_is_and_any_other_made_printable(name):
    kept = Identity(**{**IDENTITY.model_dump(), "model": name}).model
    assert kept.isprintable()
    assert kept == name or not name.isprintable()


def test_csv_keeps_every_digit_and_leaves_the_unknown_empty():
    row = ExampleRow(
        index=3,
        label=1,
        clean_prediction=1,
        clean_correct=True,
        robust=True,
        broken_by="",
        adversarial_prediction=None,
        distance=None,
        margin=0.1 + 0.2,
        forwards=None,
        backwards=None,
    )
    header, line = to_text([row]).splitlines()
    assert header.split(",") == list(ExampleRow._fields)
    assert line == "3,1,1,True,True,,,,0.30000000000000004,,"
