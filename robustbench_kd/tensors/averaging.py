"""Averages of weights over a training: equal ones (SWA) and exponential ones (EMA)."""

from collections.abc import Mapping

import torch
from torch import Tensor


def swa_share(averaged: int) -> float:
    """Returns the weight of the next state in an equal average after `averaged` states.

    Source: Izmailov et al. 2018.

    >>> [swa_share(n) for n in (0, 1, 3)]
    [1.0, 0.5, 0.25]
    """
    return 1 / (averaged + 1)


def ema_share(decay: float, averaged: int) -> float:
    """Returns what the next weights count in an exponential average, all of it for the first ones.

    >>> ema_share(0.999, averaged=0), round(ema_share(0.999, averaged=5), 6)
    (1.0, 0.001)
    """
    return 1 - decay if averaged else 1.0


@torch.no_grad()
def average(
    before: Mapping[str, Tensor], state: Mapping[str, Tensor], weight: float
) -> dict[str, Tensor]:
    """Returns the average with the new state, which has a `weight` in [0, 1].

    Counters are taken from the new state. Running statistics of batch normalisation are averaged
    like weights; SWA estimates them again instead (`torch.optim.swa_utils.update_bn`), as they fit
    no single one of the averaged networks.
    """
    return {
        name: torch.lerp(before[name], value, weight)
        if value.is_floating_point()
        else value.clone()
        for name, value in state.items()
    }
