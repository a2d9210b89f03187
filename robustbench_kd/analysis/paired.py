"""The change of an accuracy between two runs on the same examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustbench_kd.core.mcnemar import mcnemar
from robustbench_kd.core.statistics import paired_interval

ALPHA = 0.05
MOST = 20  # ids and rows that are listed for a person; JSON has all


@dataclass(frozen=True)
class Change:
    """What became of one accuracy: `lost` and `gained` are ids of examples, `p` is the test's.

    Fractions of `n` examples; the interval is a 95 % one of the difference.
    """

    name: str
    n: int
    before: float
    after: float
    lost: tuple[int, ...]
    gained: tuple[int, ...]
    ci_low: float
    ci_high: float
    p: float

    @property
    def difference(self) -> float:
        """After less before."""
        if not self.n:
            return 0.0
        return (len(self.gained) - len(self.lost)) / self.n

    @property
    def mark(self) -> str:
        """`+` better, `-` worse, `~` not significant at 5 %, `=` no example differs."""
        if not self.lost and not self.gained:
            return "="
        if self.p > ALPHA:
            return "~"
        return "+" if self.difference > 0 else "-"


def change(name: str, before: Mapping[int, bool], after: Mapping[int, bool]) -> Change:
    """Returns the change of an accuracy from what is correct before and after, of the same ids.

    The p-value is McNemar's exact two-sided one.

    >>> change("robust", {1: True, 2: True}, {1: True, 2: False}).lost
    (2,)
    """
    lost, gained = [], []
    for index in sorted(before):
        if before[index] and not after[index]:
            lost.append(index)
        elif after[index] and not before[index]:
            gained.append(index)

    low, high = paired_interval(len(lost), len(gained), len(before))
    n = max(1, len(before))
    return Change(
        name=name,
        n=len(before),
        before=sum(before.values()) / n,
        after=sum(after.values()) / n,
        lost=tuple(lost),
        gained=tuple(gained),
        ci_low=low,
        ci_high=high,
        p=mcnemar(len(lost), len(gained)),
    )


def points(change: Change) -> str:
    """Returns a difference in percentage points, with its interval, such as `-3.0 [-4.1, -1.9]`."""
    interval = f"[{_signed(change.ci_low)}, {_signed(change.ci_high)}]"
    return f"{_signed(change.difference)} {interval}"


def p_text(p: float) -> str:
    """Returns a p-value with three decimals.

    >>> p_text(0.0321), p_text(1e-9)
    ('0.032', '<0.001')
    """
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def listed(ids: Sequence[int], most: int = MOST) -> str:
    """Returns ids in a line, of which the rest beyond `most` is only counted.

    >>> listed([1, 2, 3], most=2), listed([])
    ('1, 2 and 1 more', 'none')
    """
    if not ids:
        return "none"
    line = ", ".join(map(str, ids[:most]))
    if len(ids) > most:
        line += f" and {len(ids) - most} more"
    return line


def _signed(fraction: float) -> str:
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"  # adding zero turns minus zero into plus zero
