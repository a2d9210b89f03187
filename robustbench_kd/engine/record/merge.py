"""Writes the record of a finished run: one that was decided here, or shards from files alone."""

from pathlib import Path

from robustbench_kd.core.agreement import stored_record
from robustbench_kd.core.errors import IncompleteError
from robustbench_kd.core.ledger import Ledger, Stored, read_ledger, unfinished
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rundir import JOB, LEDGER, write_record
from robustbench_kd.engine.record.build import finished_record
from robustbench_kd.engine.record.fates import draw_rows, example_rows
from robustbench_kd.engine.record.header import RunHeader, read_header
from robustbench_kd.engine.run.ledger_index import LedgerIndex

_MOST_NAMED = 10


def merge(folder: Path) -> RunRecord:
    """Writes the record of a run whose shards are finished, as if one process had decided all.

    Needs neither model nor data. A record that is there already is returned as it is. Raises
    `IncompleteError` that names missing shards, `RecordError` where files are damaged or a shard is
    still running.
    """
    path = folder / LEDGER
    stored = stored_record(folder)
    if stored:
        with Ledger(path) as ledger:
            remove_ledgers(ledger, folder)
        return stored

    header = read_header(folder)
    _require_finished(read_ledger(path), folder)  # nothing is changed before all is known
    with Ledger(path) as ledger:
        _require_finished(Stored(ledger.entries, ledger.damage), folder)
        return write_all(header, ledger, folder)


def _require_finished(stored: Stored, folder: Path) -> None:
    """Raises `IncompleteError` that names missing shards and damaged files."""
    missing = unfinished(stored.entries)
    if not missing:
        return
    names = ", ".join(str(shard) for shard in missing[:_MOST_NAMED])
    more = ", ..." if len(missing) > _MOST_NAMED else ""
    damage = "".join(f"{text}; " for text in stored.damage)
    raise IncompleteError(
        f"{damage}'{folder}' lacks shards {names}{more}: run each by --shard, or copy its ledger "
        "there"
    )


def write_all(header: RunHeader, ledger: Ledger, folder: Path) -> RunRecord:
    """Writes the record of a ledger in which everything is decided, and removes the ledger."""
    record = finished_record(header, ledger.entries)
    index = LedgerIndex(ledger.entries)
    write_record(folder, record, example_rows(header, index), draw_rows(header, index))
    remove_ledgers(ledger, folder)
    return record


def remove_ledgers(ledger: Ledger, folder: Path) -> None:
    """Removes what a finished run needs no more; a killed process may have left some of it."""
    ledger.remove()
    (folder / JOB).unlink(missing_ok=True)
