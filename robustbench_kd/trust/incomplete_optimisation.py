"""The loss was still rising when the attack ended (IoAF I4)."""

import torch
from torch import Tensor

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.short_attacks import ShortAttacks, Trace
from robustbench_kd.trust._grade import Limits, of_sample

_LAST, _RISE = 10, 0.05  # both from Pintor et al. 2022
_LIMITS = Limits(yellow=0.05)  # no image of any honest network, a quarter or more of masked ones


def search(attacks: ShortAttacks) -> list[Finding]:
    """Returns a yellow finding if the loss of failed attacks rises to the end.

    It rises if its last ten steps gain over 5 % of its range. Source: indicator I4 of Pintor et al.
    2022 (arXiv 2106.09947), on 50 steps of APGD.
    """
    return of_sample(
        "incomplete-optimisation",
        attacks.sample,
        _rising(attacks.second),
        _LIMITS,
        message=f"incomplete optimisation (IoAF I4): the last {_LAST} of 50 steps gain over "
        f"{_RISE:.0%} of the loss",
        advice="use more steps (--suite plus), other step sizes, or better gradients",
    )


def _rising(trace: Trace) -> Tensor:
    """Returns the rows that the attack did not break and whose best loss was still rising."""
    best = trace.losses.nan_to_num(-torch.inf).cummax(dim=0).values
    spread = trace.losses.amax(dim=0) - trace.losses.amin(dim=0)
    rise = (best[-1] - best[-_LAST]) / spread
    return trace.rows[(rise > _RISE) & ~trace.wrong.any(dim=0)]
