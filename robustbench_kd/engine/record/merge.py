"""Writes the record of a finished run: one that was decided here, or shards from files alone."""

from pathlib import Path

from robustbench_kd.core.errors import IncompleteError
from robustbench_kd.core.ledger import Ledger, unfinished
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rundir import JOB, LEDGER, stored_record, write_record
from robustbench_kd.engine.record.build import (
    RunHeader,
    draw_rows,
    example_rows,
    read_summary,
    summarise,
)


def merge(folder: Path) -> RunRecord:
    """Writes the record of a run whose shards are finished, as if one process had decided everything, and returns it.

    Needs neither model nor data. A record that is there already is returned as it is. Raises
    `IncompleteError` that names the shards which are missing, `RecordError` where files are damaged
    or a shard is still running.
    """
    stored = stored_record(folder)
    if stored:
        return stored
    about = read_summary(folder)
    with Ledger(folder / LEDGER) as ledger:
        missing = unfinished(ledger.entries)
        if missing:
            names = ", ".join(str(shard) for shard in missing[:10]) + (
                ", ..." if len(missing) > 10 else ""
            )
            raise IncompleteError(
                f"'{folder}' lacks shards {names}: run each by --shard, or copy its ledger there"
            )
        return write_all(about, ledger, folder)


def write_all(about: RunHeader, ledger: Ledger, folder: Path) -> RunRecord:
    """Writes what a ledger in which everything is decided says, and removes it."""
    record = summarise(about, ledger.entries, complete=True)
    write_record(
        folder, record, example_rows(about, ledger.entries), draw_rows(about, ledger.entries)
    )
    ledger.remove()
    (folder / JOB).unlink(missing_ok=True)
    return record
