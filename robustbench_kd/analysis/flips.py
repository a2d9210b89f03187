"""Which images were lost and gained since a baseline, model by model."""

from dataclasses import dataclass
from pathlib import Path

from robustbench_kd.analysis.leaderboard import read_records, title
from robustbench_kd.analysis.paired import Change, change, listed, p_text, points
from robustbench_kd.analysis.runs import read_verdicts
from robustbench_kd.core.errors import RkdError
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rundir import EXAMPLES

_MOST = 30
_Stored = tuple[Path, RunRecord]


@dataclass(frozen=True)
class Flip:
    """The change of one model; `lost` and `gained` are the first ids of images as text."""

    model: str
    protocol: str
    change: Change
    points: str
    p: str
    lost: str
    gained: str


@dataclass(frozen=True)
class Flips:
    """The changes of all models that the baseline has too, and why others are missing."""

    changes: tuple[Flip, ...]
    left_out: tuple[str, ...]


def read_flips(results: Path, baseline: Path) -> Flips:
    """Compares runs with those of the same model and protocol in a baseline folder.

    Raises `RecordError` where there is no such folder.
    """
    records, _ = read_records(results)
    before, unread = read_records(baseline)
    known = {_key(record): (folder, record) for folder, record in before.items()}
    changes: list[Flip] = []
    left_out = [*unread]
    for folder, record in records.items():
        try:
            changes += _flips(known.get(_key(record)), (folder, record), left_out)
        except RkdError as error:
            left_out.append(str(error))
    return Flips(tuple(sorted(changes, key=lambda flip: flip.change.difference)), tuple(left_out))


def _flips(before: _Stored | None, after: _Stored, left_out: list[str]) -> list[Flip]:
    identity = after[1].identity
    if before is None:
        left_out.append(f"{identity.model}: the baseline has no run of it on {title(identity)}")
        return []
    old, new = read_verdicts(*before), read_verdicts(*after)
    if old.labels != new.labels:
        left_out.append(
            f"{identity.model} is not comparable: the same data, but other indices or labels in "
            f"{EXAMPLES}"
        )
        return []

    found = change("robust", old.robust, new.robust)
    flip = Flip(
        model=identity.model,
        protocol=title(identity),
        change=found,
        points=points(found),
        p=p_text(found.p),
        lost=_ids(found.lost),
        gained=_ids(found.gained),
    )
    return [flip]


def _key(record: RunRecord) -> tuple[str, str]:
    return record.identity.model, record.identity.protocol_hash()


def _ids(indices: tuple[int, ...]) -> str:
    return listed(indices, _MOST) if indices else ""
