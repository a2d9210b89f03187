"""Run directories: whole files or none, and errors that say which file is wrong."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from robustbench_kd.core import files, rundir
from robustbench_kd.core.agreement import stored_record
from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.files import write_text
from robustbench_kd.core.records import Identity, RunRecord, StageResult
from robustbench_kd.core.rows import ExampleRow
from robustbench_kd.core.rundir import (
    ATTACKS,
    EXAMPLES,
    FINDINGS,
    RECORD,
    read_record,
    run_folder,
    to_csv,
    write_interrupted,
    write_record,
)
from robustbench_kd.core.statistics import mean_accuracy


class Pair(BaseModel):
    first: str
    second: float | None


def record(status="complete"):
    identity = Identity(
        model="net",
        family="classifier",
        architecture="small_cnn",
        normalisation="none",
        checkpoint_sha256="0",
        dataset="digits",
        data_fingerprint="0",
        examples=1,
        norm="linf",
        eps=0.1,
        eps_text="0.1",
        suite="apgd-ce",
        attacks=["apgd-ce"],
        engine="autoattack",
        seed=0,
        batch_size=1,
        device="cpu",
        versions={},
    )
    accuracy = mean_accuracy([1.0])
    return RunRecord(
        run_id=identity.run_id(),
        status=status,
        identity=identity,
        protocol_hash=identity.protocol_hash(),
        clean=accuracy,
        robust=accuracy,
        stages=[
            StageResult(stage=name, accuracy=accuracy, forwards=1, backwards=0, seconds=0.0)
            for name in ("clean", "apgd-ce")
        ],
        forwards=2,
        verdict="consistent",
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("net", "net"),
        ("cifar10/Linf/net", "cifar10-Linf-net"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "model"),
        ("", "model"),
        ("\u5b66\u751f", "model"),
        ("n" * 300, "n" * 100),
        (".hidden", "hidden"),
        ("a b\n|c", "a-b-c"),
    ],
)
def test_a_model_name_becomes_one_plain_folder(model, folder, tmp_path):
    assert run_folder(tmp_path, model, "0123") == tmp_path / folder / "0123"


@given(st.text(max_size=300))
def test_no_name_leads_out_of_the_results(tmp_path_factory, model):
    results = tmp_path_factory.getbasetemp()
    made = run_folder(results, model, "run")
    assert made.parent.parent == results
    assert made.resolve().parent.parent == results.resolve()


def test_writing_replaces_a_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "one")
    write_text(path, "two\n")
    assert path.read_bytes() == b"two\n"
    assert names(path.parent) == ["file.txt"]


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, full_disk):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with (
        full_disk(1000),
        pytest.raises(RecordError, match=r"cannot write .*file\.txt': File too large; free space"),
    ):
        write_text(path, "new" * 1000)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_neither_half_a_file_nor_a_temporary_one(
    tmp_path, monkeypatch, error
):
    def stop(_):
        raise error

    monkeypatch.setattr(files.os, "fsync", stop)
    with pytest.raises(error):
        write_text(tmp_path / "file.txt", "text")
    assert names(tmp_path) == []


def test_a_file_in_place_of_a_folder_is_an_error_of_one_line(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(RecordError, match=r"cannot write .*taken/file\.txt") as caught:
        write_text(tmp_path / "taken" / "file.txt", "text")
    assert "\n" not in str(caught.value)


def test_a_complete_run_is_all_its_files_and_is_found_again(tmp_path):
    row = ExampleRow(
        index=0,
        label=0,
        clean_prediction=0,
        clean_correct=True,
        robust=True,
        broken_by="",
        adversarial_prediction=None,
        distance=None,
        margin=1.0,
        forwards=None,
        backwards=None,
    )
    folder = tmp_path / record().run_id
    write_record(folder, record(), [row])
    assert names(folder) == sorted([RECORD, EXAMPLES, ATTACKS, FINDINGS])
    assert stored_record(folder) == record()
    assert (folder / FINDINGS).read_text() == "[]\n"


def test_run_json_is_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(rundir, "write_text", lambda path, _: written.append(path.name))
    write_record(tmp_path, record(), [])
    assert written[-1] == RECORD


def test_an_interrupted_run_is_no_stored_one(tmp_path):
    assert stored_record(tmp_path) is None
    write_interrupted(tmp_path, record("interrupted"))
    assert stored_record(tmp_path) is None
    assert read_record(tmp_path / RECORD).status == "interrupted"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file: Invalid JSON"),
        (b"<html>", "the file: Invalid JSON"),
        (b"\xff\xfe", "the file: Invalid JSON"),
        (b"{}", "run_id: Field required"),
        (b'{"schema_version": 2}', "schema_version: Input should be 1"),
    ],
)
def test_a_damaged_record_is_named_with_what_is_wrong_and_what_to_do(tmp_path, content, said):
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(
        RecordError, match=f"run.json' is not a run record: {said}.*delete it and run again"
    ) as caught:
        read_record(tmp_path / RECORD)
    assert "\n" not in str(caught.value)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"cannot read .*run\.json': No such file"):
        read_record(tmp_path / RECORD)


@given(
    st.lists(
        st.builds(
            Pair,
            first=st.text().filter(str.isprintable),
            second=st.none() | st.floats(allow_nan=False),
        )
    )
)
def test_csv_reads_back(rows):
    read = list(csv.DictReader(io.StringIO(to_csv(rows, Pair), newline="")))
    assert [Pair(first=row["first"], second=row["second"] or None) for row in read] == rows


def test_csv_without_rows_is_its_header():
    assert to_csv([], Pair) == "first,second\n"
