"""The ledger keeps every decision that it was given, whatever ends the process."""

import errno
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.core import ledger as module
from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.ledger import Decision, Entry, Ledger
from robustbench_kd.core.records import Finding, Severity, Work
from robustbench_kd.engine.run.ledger_index import LedgerIndex

numbers = st.floats(allow_nan=False)
lengths = st.floats(min_value=0, allow_nan=False)
seconds = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**40)
decisions = st.builds(
    Decision,
    index=counts,
    broken=st.booleans(),
    prediction=counts,
    margin=numbers,
    distance=st.none() | lengths,
    forwards=st.none() | counts,
    backwards=st.none() | counts,
)
findings = st.builds(
    Finding,
    check=st.text(),
    severity=st.sampled_from(Severity),
    message=st.text(),
    value=st.none() | numbers,
)
entries = st.builds(
    Entry,
    stage=st.text(),
    decisions=st.lists(decisions, max_size=4),
    forwards=counts,
    backwards=counts,
    seconds=seconds,
    findings=st.lists(findings, max_size=2),
    work=st.none() | st.builds(Work, computed=counts, live=counts, model_seconds=seconds),
)


def entry(stage, *indices):
    return Entry(
        stage=stage,
        decisions=[Decision(index=i, broken=i % 2 == 0, prediction=i, margin=0.5) for i in indices],
    )


def keep(path, *kept):
    with Ledger(path) as ledger:
        for one in kept:
            ledger.append(one)


def replayed(path):
    with Ledger(path) as ledger:
        return ledger.entries


@given(st.lists(entries, max_size=5))
def test_everything_that_was_appended_is_there_when_it_is_opened_again(tmp_path_factory, kept):
    path = tmp_path_factory.mktemp("run") / "ledger.jsonl"
    keep(path, *kept)
    assert replayed(path) == kept


def test_an_open_ledger_shows_what_it_was_given(tmp_path):
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.append(entry("clean", 1))
        assert ledger.entries == [entry("clean", 1)]


def test_a_last_line_torn_at_any_byte_is_cut_off_and_the_rest_kept(tmp_path):
    path, kept = tmp_path / "ledger.jsonl", [entry("clean", 1, 2), entry("apgd-ce", 2)]
    keep(path, *kept)
    whole, last = path.read_bytes(), len(path.read_bytes().splitlines(keepends=True)[-1])
    for missing in range(1, last + 1):
        path.write_bytes(whole[:-missing])
        assert replayed(path) == kept[:1]
        assert path.read_bytes() == whole[:-last]


def test_a_ledger_with_a_torn_line_goes_on_with_a_whole_one(tmp_path):
    path = tmp_path / "ledger.jsonl"
    keep(path, entry("clean", 1), entry("apgd-ce", 2))
    path.write_bytes(path.read_bytes()[:-5])
    keep(path, entry("square", 3))
    assert replayed(path) == [entry("clean", 1), entry("square", 3)]


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\x00\x00\n", b"\xff\xfe\n", b"{}\n", b"[1, 2]\n", b'{"stage": "x", "more": 1}\n'],
)
def test_nothing_behind_a_line_that_cannot_be_read_is_trusted(tmp_path, garbage):
    path = tmp_path / "ledger.jsonl"
    keep(path, entry("clean", 1), entry("apgd-ce", 2))
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + garbage + second)
    assert replayed(path) == [entry("clean", 1)]


def test_clear_forgets_everything_on_disk_too(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.append(entry("clean", 1))
        ledger.clear()
        ledger.append(entry("clean", 2))
        assert ledger.entries == [entry("clean", 2)]
    assert replayed(path) == [entry("clean", 2)]


def test_remove_deletes_the_file(tmp_path):
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_refused_and_the_first_is_not_disturbed(tmp_path):
    path = tmp_path / "ledger.jsonl"
    program = (
        "import sys, pathlib; from robustbench_kd.core.ledger import Ledger; "
        "Ledger(pathlib.Path(sys.argv[1])).__enter__()"
    )
    with Ledger(path) as ledger:
        other = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
        )
        assert "RecordError: another process is writing" in other.stderr
        ledger.append(entry("clean", 1))
    assert replayed(path) == [entry("clean", 1)]


def test_a_file_system_without_locks_is_not_blamed_on_another_process(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    with (
        pytest.raises(RecordError, match=r"cannot lock .*: No locks available"),
        Ledger(tmp_path / "ledger.jsonl"),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(RecordError, match=r"cannot write results to .*Not a directory"):
        Ledger(tmp_path / "results" / "net" / "run" / "ledger.jsonl").__enter__()


def test_a_disk_that_fills_up_is_one_error_and_loses_no_earlier_decision(tmp_path, full_disk):
    path, kept = tmp_path / "ledger.jsonl", entry("clean", 1, 2)
    keep(path, kept)
    said = pytest.raises(
        RecordError, match="what was decided is kept, free some space and run again"
    )
    with said as caught, full_disk(path.stat().st_size + 10), Ledger(path) as ledger:
        ledger.append(entry("apgd-ce", 1, 3, 5, 7))
    assert caught.value.exit_code == 2
    assert replayed(path) == [kept]


def test_an_entry_that_the_disk_does_not_confirm_is_an_error(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", refuse)
    with pytest.raises(RecordError, match="No space left on device"):
        keep(tmp_path / "ledger.jsonl", entry("clean", 1))


def test_decided_takes_one_stage_and_the_latest_word_on_an_example():
    known = [
        entry("clean", 1, 2),
        entry("apgd-ce", 2),
        Entry(stage="clean", decisions=[entry("x", 4).decisions[0]]),
    ]
    index = LedgerIndex(known)
    assert sorted(index.decisions("clean")) == [1, 2, 4]
    assert index.decisions("square") == {}
