"""Examples in random order, chunk by chunk, until it is known whether the robust accuracy of all of them reaches a number.

The answer may be asked for after every chunk without erring more often: `core/statistics.settled`
is valid at any time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from robustbench_kd.core.claim import MISTAKES, claim_text
from robustbench_kd.core.ledger import Entry
from robustbench_kd.core.records import Claim
from robustbench_kd.core.statistics import settled as settled_claim
from robustbench_kd.engine.record.build import RunHeader, standing
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.keyed_random import uniform

_CHUNK = 64


def chunks(data: Dataset, seed: int) -> Iterator[Tensor]:
    """Returns the rows of a data set chunk by chunk, in an order that depends on the seed and the example ids alone."""
    ids = torch.tensor(data.ids)
    order = (
        uniform(seed, "sequential", ids, torch.zeros_like(ids), 0, 1).flatten().argsort(stable=True)
    )
    return (order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK))


def settled(
    about: RunHeader, seen: set[int], ledger: list[Entry], at_least: float
) -> RunHeader | None:
    """Returns the summary of the examples that were seen, with the claim they settle; None while it is open."""
    labels = {example: label for example, label in about.labels.items() if example in seen}
    part = about.model_copy(update={"labels": labels})
    robust = standing(part, ledger)
    holds = settled_claim(robust, len(seen), at_least, MISTAKES, population=len(about.labels))
    if holds is None:
        return None
    text = claim_text(at_least)
    claim = Claim(
        text=text, holds=holds, evaluated=len(seen), population=len(about.labels), mistakes=MISTAKES
    )
    return part.model_copy(update={"claim": claim})
