"""Ranks runs; what must not be ranked together has its own table."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from robustbench_kd.analysis.published import Published
from robustbench_kd.core.agreement import believed_record
from robustbench_kd.core.errors import RecordError, RkdError, unknown_name
from robustbench_kd.core.records import Identity, RunRecord
from robustbench_kd.core.rundir import RECORD
from robustbench_kd.core.text import printable
from robustbench_kd.core.threat import Threat
from robustbench_kd.core.verdicts import verdict_words

KEYS = (
    "model",
    "family",
    "architecture",
    "dataset",
    "norm",
    "threat",
    "suite",
    "engine",
    "mode",
    "verdict",
)
ORDERS: Mapping[str, Callable[[RunRecord], tuple[float, str]]] = {
    "robust": lambda record: (-record.robust_value, ""),
    "clean": lambda record: (-record.clean_value, ""),
    "gap": lambda record: (-(gap(record) or 0.0), ""),
    "model": lambda record: (0.0, record.identity.model),
    "time": lambda record: (record.seconds, ""),
    "passes": lambda record: (record.passes, ""),
}


@dataclass(frozen=True)
class Board:
    """Runs that share data, threat, suite, engine and mode.

    `ranks` are by robust accuracy; equal numbers have equal rank.
    `published` are numbers from elsewhere for the same data set and threat, without a rank.
    """

    title: str
    records: tuple[RunRecord, ...]
    ranks: tuple[int, ...]
    published: tuple[Published, ...] = ()


@dataclass(frozen=True)
class Leaderboard:
    """All tables, with the runs that could not be ranked and why."""

    boards: tuple[Board, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """Which runs to rank, in which order to show them, and how many of each table.

    `where` maps some of `KEYS` to the values that are wanted; `sort` is one of `ORDERS`.
    """

    where: Mapping[str, Collection[str]] = field(default_factory=dict)
    sort: str = "robust"
    top: int | None = None


def read_leaderboard(results: Path, view: View | None = None) -> Leaderboard:
    """Reads every run under a folder and ranks those that a view wants.

    Unreadable and unfinished runs are left out, and named. Raises `RecordError` where there is no
    such folder, and `UsageError` for a view that makes no sense.
    """
    records, left_out = read_records(results)
    return Leaderboard(show(records.values(), view or View()), left_out)


def read_records(results: Path) -> tuple[dict[Path, RunRecord], tuple[str, ...]]:
    """Returns the records of finished runs by folder, and why others are left out.

    Raises `RecordError` where there is no such folder.
    """
    if not results.is_dir():
        raise RecordError(
            f"there is no results folder '{results}': run 'rkd eval' first, or name another folder"
        )
    records, left_out = {}, []
    for path in sorted(results.glob(f"*/*/{RECORD}")):
        try:
            records[path.parent] = believed_record(path.parent)
        except RkdError as error:
            left_out.append(str(error))
    return records, tuple(left_out)


def show(records: Iterable[RunRecord], view: View) -> tuple[Board, ...]:
    """Returns the boards of the wanted runs.

    Ranks count among the wanted runs, whatever the order and however many are shown.
    """
    if view.sort not in ORDERS:
        raise unknown_name("order", view.sort, ORDERS)
    wanted = list(records)
    for key, values in view.where.items():
        wanted = list(filter(_condition(key, values), wanted))
    return tuple(_arranged(board, view) for board in rank(wanted))


def rank(records: Iterable[RunRecord]) -> list[Board]:
    """Returns one board per protocol, in the order of data set, threat and suite."""
    groups: dict[tuple[str, int], list[RunRecord]] = {}
    for record in sorted(records, key=_place):
        identity = record.identity
        groups.setdefault((identity.protocol_hash(), identity.examples), []).append(record)
    titles = Counter(title(group[0].identity) for group in groups.values())
    return [_board(group, titles) for group in groups.values()]


def beside(leaderboard: Leaderboard, published: Collection[Published]) -> Leaderboard:
    """Returns the leaderboard with published numbers for the same data set and threat."""
    boards = [_beside(board, published) for board in leaderboard.boards]
    return replace(leaderboard, boards=tuple(boards))


def gap(record: RunRecord) -> float | None:
    """Returns what adaptive attacks took beyond the others, or None where none ran."""
    if record.standard is None:
        return None
    return record.standard.value - record.robust_value


def title(identity: Identity, *, radius: bool = True) -> str:
    """Returns in words what the runs of a board share.

    Without `radius` it is what the runs of a security curve share.
    """
    threat = identity.norm
    if radius:
        threat += f" {identity.eps_text}"
    data = f"{identity.dataset}, {identity.examples} examples"
    text = f"{data}, {threat}, {identity.suite} by {identity.engine}"
    if identity.mode not in ("exact", identity.suite):
        text += f", {identity.mode}"
    return printable(text)


def _condition(key: str, values: Collection[str]) -> Callable[[RunRecord], bool]:
    if key not in KEYS:
        raise unknown_name("key of --where", key, KEYS)
    if key == "threat":
        threats = {(str(threat.norm), threat.eps) for threat in map(Threat.parse, values)}
        return lambda record: (record.identity.norm, record.identity.eps) in threats
    if key == "verdict":
        words = {verdict_words(value) for value in values}
        return lambda record: verdict_words(record.verdict or "") in words
    return lambda record: getattr(record.identity, key) in values


def _place(record: RunRecord) -> tuple[str, str, float, str, str]:
    identity = record.identity
    return identity.dataset, identity.norm, identity.eps, identity.suite, record.protocol_hash


def _board(group: list[RunRecord], titles: Counter[str]) -> Board:
    ordered = sorted(group, key=_standing)
    values = [record.robust_value for record in ordered]
    ranks = [values.index(value) + 1 for value in values]
    name = title(ordered[0].identity)
    # They differ in what a title has no room for, such as the images themselves.
    if titles[name] > 1:
        name += f", protocol {printable(ordered[0].protocol_hash)}"
    return Board(name, records=tuple(ordered), ranks=tuple(ranks))


def _standing(record: RunRecord) -> tuple[float, float, str, str]:
    return -record.robust_value, -record.clean_value, record.identity.model, record.run_id


def _arranged(board: Board, view: View) -> Board:
    pairs = zip(board.records, board.ranks, strict=True)
    ordered = sorted(pairs, key=lambda pair: ORDERS[view.sort](pair[0]))[: view.top]
    records, ranks = zip(*ordered, strict=True)
    return replace(board, records=records, ranks=ranks)


def _beside(board: Board, published: Collection[Published]) -> Board:
    identity = board.records[0].identity
    fitting = [number for number in published if number.fits(identity)]
    fitting.sort(key=lambda number: (-number.robust, number.model))
    return replace(board, published=tuple(fitting))
