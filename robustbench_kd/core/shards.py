"""Shards: equal parts of a data set that processes decide apart from each other."""

import re
from dataclasses import dataclass
from typing import Self

from robustbench_kd.core.errors import UsageError


@dataclass(frozen=True, order=True)
class Shard:
    """Part `number` of `count`, counted from 1: every `count`-th row of a data set.

    >>> str(Shard(2, 5)), list(Shard(2, 5).rows(12))
    ('2/5', [1, 6, 11])
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `2/5`; raises `UsageError` for what is no part of a whole."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"expected a shard as NUMBER/COUNT, such as 1/5 to 5/5, got '{text}'")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def rows(self, n: int) -> range:
        """Returns the rows of a data set of n examples that are in this part."""
        return range(self.number - 1, n, self.count)

    def of(self, name: str) -> str:
        """Returns the name of this part's own file beside one that belongs to all.

        >>> Shard(2, 5).of("ledger.jsonl")
        'ledger-2-of-5.jsonl'
        """
        stem, _, suffix = name.rpartition(".")
        return f"{stem}-{self.number}-of-{self.count}.{suffix}"


def shards(count: int) -> tuple[Shard, ...]:
    """Returns all parts of a whole, the first one first."""
    return tuple(Shard(number, count) for number in range(1, count + 1))
