"""Examples in random order, chunk by chunk, until a claim on the robust accuracy of all is settled.

The question may be asked after every chunk without more wrong answers: `core/statistics.settled` is
valid at any time.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from robustbench_kd.core.claim import MISTAKES, claim_text
from robustbench_kd.core.ledger import Entry
from robustbench_kd.core.records import Claim
from robustbench_kd.core.statistics import settled as is_settled
from robustbench_kd.engine.record.fates import survivors
from robustbench_kd.engine.record.header import RunHeader
from robustbench_kd.engine.run.ledger_index import LedgerIndex
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.keyed_random import uniform

_CHUNK = 64


def chunks(data: Dataset, seed: int) -> Iterator[Tensor]:
    """Returns the rows of a data set chunk by chunk, in an order keyed by seed and example ids."""
    ids = torch.tensor(data.ids)
    draws = uniform(seed, "sequential", ids, torch.zeros_like(ids), 0, 1).flatten()
    return iter(torch.split(draws.argsort(stable=True), _CHUNK))


def settled(
    header: RunHeader, seen: set[int], ledger: Sequence[Entry], at_least: float
) -> RunHeader | None:
    """Returns the header of the examples that were seen, with the claim that they settle.

    It is None while the claim is open.
    """
    labels = {example: label for example, label in header.labels.items() if example in seen}
    part = header.model_copy(update={"labels": labels})
    robust = survivors(part, LedgerIndex(ledger))
    population = len(header.labels)
    holds = is_settled(robust, len(seen), at_least, MISTAKES, population=population)
    if holds is None:
        return None

    claim = Claim(
        text=claim_text(at_least),
        holds=holds,
        evaluated=len(seen),
        population=population,
        mistakes=MISTAKES,
    )
    return part.model_copy(update={"claim": claim})
