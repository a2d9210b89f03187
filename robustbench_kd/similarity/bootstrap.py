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
    """A measure of one network: the sum of `values` over the sum of `weights`.

    Both are float64 `(n,)` with one entry per example. `network` is the index of the network. A
    fraction is a measure in which each example counts 0 to 1 times its weight.
    """

    measure: str
    network: int
    values: Tensor
    weights: Tensor
    is_fraction: bool = False

    @property
    def mean(self) -> float | None:
        """The measure, None where no example counts."""
        total = self.weights.sum()
        if total > 0:
            return (self.values.sum() / total).item()
        return None


class Row(Frozen):
    """One measure of one network with its 95 % interval and its difference from a reference.

    The reference is the independent network. `protocol` names the evaluation that a measure was
    read from; it is empty for a measure of this command. `n` is the sum of the weights, for a
    fraction the number of examples that count. `share` says whether the measure is a fraction.
    Numbers are None where no example counts, or where there is no independent network.
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
    """Returns a row for each series; `names` are the model and role of each network.

    All series are over the same examples. Intervals of fractions are Wilson's. All others are
    percentiles of a bootstrap over examples, keyed by the seed; every series is resampled with the
    same examples, so that differences from the series of the network `reference` are paired.
    """
    replicates = dict(zip(series, _replicated(series, seed).T, strict=True))
    by_key = {(entry.measure, entry.network): entry for entry in series}

    rows = []
    for entry in by_key.values():
        model, role = names[entry.network]
        row = Row(
            protocol=protocol,
            measure=entry.measure,
            model=model,
            role=role,
            share=entry.is_fraction,
            n=entry.weights.sum().item(),
            value=entry.mean,
        )
        rival = by_key.get((entry.measure, reference))
        update = _interval(entry, replicates[entry])
        if rival is not None and rival is not entry:
            update |= _difference(entry, rival, replicates[entry] - replicates[rival])
        rows.append(row.model_copy(update=update))
    return rows


def _interval(entry: Series, replicates: Tensor) -> dict[str, float]:
    """Returns the columns of the interval of a measure, none where no example counts."""
    if entry.mean is None:
        return {}
    if entry.is_fraction:
        low, high = interval(entry.values.sum().item(), round(entry.weights.sum().item()))
    else:
        low, high = _bounds(replicates)
    return {"ci_low": low, "ci_high": high}


def _difference(entry: Series, rival: Series, replicates: Tensor) -> dict[str, float]:
    """Returns the columns of the difference from a rival, none where no example counts."""
    if entry.mean is None or rival.mean is None:
        return {}
    low, high = _bounds(replicates)
    return {
        "difference": entry.mean - rival.mean,
        "difference_low": low,
        "difference_high": high,
    }


def _bounds(replicates: Tensor) -> tuple[float, float]:
    """Returns the percentiles that bound 95 % of the replicates in which an example counts."""
    finite = replicates[replicates.isfinite()]
    outside = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(finite, finite.new_tensor([outside, 1 - outside])).tolist()
    return low, high


def _replicated(series: Sequence[Series], seed: int) -> Tensor:
    """Returns the value of every series in every replicate, `(replicates, series)`."""
    values = torch.stack([entry.values for entry in series], dim=1)
    weights = torch.stack([entry.weights for entry in series], dim=1)
    parts = []
    for counts in _resamples(len(values), seed):
        totals = counts @ weights
        parts.append(counts @ values / totals)
    return torch.cat(parts)


def _resamples(n: int, seed: int) -> Iterator[Tensor]:
    """Yields how often each example is drawn in each of some replicates, `(replicates, n)`."""
    for ids in torch.split(torch.arange(REPLICATES), _CHUNK):
        drawn = keyed_random.uniform(seed, "bootstrap", ids, torch.zeros_like(ids), 0, n)
        indices = (drawn.double() * n).long()
        ones = torch.ones_like(indices, dtype=torch.float64)
        yield torch.zeros(len(ids), n, dtype=torch.float64).scatter_add_(1, indices, ones)
