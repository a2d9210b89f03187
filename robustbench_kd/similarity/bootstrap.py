"""Measures with one value per example, and their means with intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_kd.core.records import Frozen, Name
from robustbench_kd.core.statistics import CONFIDENCE, interval
from robustbench_kd.tensors import keyed_random

REPLICATES = 1000
_CHUNK = 100  # replicates that are drawn at once


@dataclass(frozen=True, eq=False)
class Series:
    """A measure of one network, sum of `values` over sum of `weights`, both `(n,)` float64 with one entry per example.

    `place` tells which network; a `share` is a fraction of the weights, in which each example
    counts 0 to 1 times its own.
    """

    measure: str
    place: int
    values: Tensor
    weights: Tensor
    share: bool = False


class Row(Frozen):
    """One measure of one network with its 95 % interval, and its difference from the independent network.

    `protocol` names the evaluation that a measure was read from, and is empty for one that was
    measured here. `n` is what the weights add up to, of shares the number of examples that count.
    Empty where nothing counts, or where there is no independent network to differ from.
    """

    protocol: str = ""
    measure: Name
    model: Name
    role: str
    share: bool
    n: float
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


def summarise(
    series: Sequence[Series],
    names: Sequence[tuple[str, str]],
    *,
    reference: int,
    seed: int,
    protocol: str = "",
) -> list[Row]:
    """Returns a row for each series, all over the same examples; `names` are the model and role of each place.

    Intervals of shares are Wilson's. All others are percentiles of a bootstrap over examples, keyed
    by the seed; every series is drawn with the same examples, so that differences from the series
    of place `reference` are paired.
    """
    drawn = dict(
        zip(map(_key, series), zip(series, _replicated(series, seed).T, strict=True), strict=True)
    )
    return [
        _row(names[one.place], one, replicates, drawn.get((one.measure, reference))).model_copy(
            update={"protocol": protocol}
        )
        for one, replicates in drawn.values()
    ]


def _key(one: Series) -> tuple[str, int]:
    return one.measure, one.place


def _row(
    name: tuple[str, str], one: Series, replicates: Tensor, rival: tuple[Series, Tensor] | None
) -> Row:
    value, size = _ratio(one), one.weights.sum().item()
    row = Row(
        measure=one.measure, model=name[0], role=name[1], share=one.share, n=size, value=value
    )
    if value is None:
        return row
    low, high = interval(one.values.sum().item(), round(size)) if one.share else _bounds(replicates)
    row = row.model_copy(update={"ci_low": low, "ci_high": high})
    other = _ratio(rival[0]) if rival and rival[0] is not one else None
    if rival is None or other is None:
        return row
    low, high = _bounds(replicates - rival[1])
    return row.model_copy(
        update={"difference": value - other, "difference_low": low, "difference_high": high}
    )


def _ratio(one: Series) -> float | None:
    whole = one.weights.sum()
    return (one.values.sum() / whole).item() if whole > 0 else None


def _bounds(replicates: Tensor) -> tuple[float, float]:
    """Returns the percentiles that bound 95 % of the replicates that have anything to count."""
    sound = replicates[replicates.isfinite()]
    outside = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(sound, sound.new_tensor([outside, 1 - outside])).tolist()
    return low, high


def _replicated(series: Sequence[Series], seed: int) -> Tensor:
    """Returns the value of every series in every replicate, `(replicates, series)`."""
    values, weights = (
        torch.stack([getattr(one, name) for one in series], dim=1) for name in ("values", "weights")
    )
    parts = [counts @ values / (counts @ weights) for counts in _resamples(len(values), seed)]
    return torch.cat(parts)


def _resamples(n: int, seed: int) -> Iterator[Tensor]:
    """Yields how often each example is drawn in each replicate, `(replicates, n)`, some replicates at a time."""
    for ids in torch.split(torch.arange(REPLICATES), _CHUNK):
        drawn = keyed_random.uniform(seed, "bootstrap", ids, torch.zeros_like(ids), 0, n)
        places = (drawn.double() * n).long()
        ones = torch.ones_like(places, dtype=torch.float64)
        yield torch.zeros(len(ids), n, dtype=torch.float64).scatter_add_(1, places, ones)
