"""Accuracy does not fall as the radius grows."""

from itertools import pairwise

import torch

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust._grade import Limits, of_sample

_CHECK = "accuracy-not-falling"
_LIMITS = Limits(yellow=0.05, red=0.2)  # at most 2 % of the images of honest networks
_ADVICE = "a larger ball holds the smaller one: attacks fail for want of gradients; use a stand-in, or queries"


def search(trials: ShortAttacks) -> list[Finding]:
    """Returns a finding where images fall at one radius and stand at a larger one, or no more of them in the whole box.

    Radii are the threat's, its double and fourfold, and the whole box. Source of the symptom:
    Carlini et al. 2019 (arXiv 1902.06705): success must grow with the radius.
    """
    broken = [trials.broken, *(trials.widened[radius].broken for radius in sorted(trials.widened))]
    sample, first, last = trials.sample, len(broken[0]), len(broken[-1])
    if last <= first < len(sample):
        message = f"of {len(sample)} images {first} fall at the radius, and {last} where the whole box is allowed"
        return [
            Finding(
                check=_CHECK,
                severity=Severity.RED,
                message=message,
                advice=_ADVICE,
                value=(last - first) / len(sample),
                threshold=0.0,
            )
        ]
    risen = [rows[~torch.isin(rows, next_rows)] for rows, next_rows in pairwise(broken)]
    return of_sample(
        _CHECK,
        sample,
        sample.rows[torch.isin(sample.rows, torch.cat(risen))],
        _LIMITS,
        message="attacks succeed at a radius and fail at a larger one",
        advice=_ADVICE,
    )
