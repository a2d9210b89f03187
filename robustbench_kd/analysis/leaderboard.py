"""Ranks runs; what must not be ranked together stands in tables of its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.records import Identity, RunRecord
from robustbench_kd.core.rundir import RECORD, read_record


@dataclass(frozen=True)
class Board:
    """Runs that share data, threat, suite and engine, best first; `ranks` give equal numbers equal rank."""

    title: str
    records: tuple[RunRecord, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Leaderboard:
    """All tables, with the runs that could not be ranked and why."""

    boards: tuple[Board, ...]
    left_out: tuple[str, ...]


def read_leaderboard(results: Path) -> Leaderboard:
    """Reads every run under a folder; raises `RecordError` where there is no such folder.

    Unreadable and unfinished runs are left out, and named.
    """
    if not results.is_dir():
        raise RecordError(f"there is no results folder '{results}': run 'rkd eval' first, or name another folder")
    records, left_out = [], []
    for path in sorted(results.glob(f"*/*/{RECORD}")):
        try:
            record = read_record(path)
        except RecordError as error:
            left_out.append(str(error))
            continue
        if record.status == "complete":
            records.append(record)
        else:
            left_out.append(f"'{path.parent}' is unfinished: run the same 'rkd eval' again to resume it")
    return Leaderboard(tuple(rank(records)), tuple(left_out))


def rank(records: Iterable[RunRecord]) -> list[Board]:
    """Returns one board per protocol, in the order of data set, threat and suite."""
    groups: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=_place):
        groups.setdefault(record.protocol_hash, []).append(record)
    return [_board(group) for group in groups.values()]


def _place(record: RunRecord) -> tuple[str, str, float, str, str]:
    identity = record.identity
    return identity.dataset, identity.norm, identity.eps, identity.suite, record.protocol_hash


def _board(group: list[RunRecord]) -> Board:
    ordered = sorted(
        group, key=lambda record: (-_robust(record), -_clean(record), record.identity.model, record.run_id)
    )
    values = [_robust(record) for record in ordered]
    return Board(
        title=_title(ordered[0].identity),
        records=tuple(ordered),
        ranks=tuple(values.index(value) + 1 for value in values),
    )


def _title(identity: Identity) -> str:
    return (
        f"{identity.dataset}, {identity.examples} examples, {identity.norm} {identity.eps_text}, "
        f"{identity.suite} by {identity.engine}"
    )


def _robust(record: RunRecord) -> float:
    return record.robust.value if record.robust else 0.0


def _clean(record: RunRecord) -> float:
    return record.clean.value if record.clean else 0.0
