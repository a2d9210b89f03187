"""The accuracy does not fall as the radius grows."""

from itertools import pairwise

import torch

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust._grade import Limits, of_sample

_CHECK = "accuracy-not-falling"
_LIMITS = Limits(yellow=0.05, red=0.2)  # at most 2 % of the images of honest networks
_ADVICE = (
    "the larger ball contains the smaller one, so attacks fail for lack of gradients: attack a "
    "stand-in, or by queries"
)


def search(attacks: ShortAttacks) -> list[Finding]:
    """Returns a finding if a larger radius breaks fewer images, or the whole box no more of them.

    Radii are that of the threat, twice and four times as much, and the whole box. Source of the
    symptom: Carlini et al. 2019 (arXiv 1902.06705): the success must grow with the radius.
    """
    sample = attacks.sample
    broken = [attacks.broken]
    broken += [attacks.widened[radius].broken for radius in sorted(attacks.widened)]
    at_radius = len(broken[0])
    in_box = len(broken[-1])
    if in_box <= at_radius < len(sample):
        return [_no_more_in_the_box(at_radius, in_box, len(sample))]

    survivors = []
    for rows, next_rows in pairwise(broken):
        survives = ~torch.isin(rows, next_rows)
        survivors.append(rows[survives])
    return of_sample(
        _CHECK,
        sample,
        sample.rows[torch.isin(sample.rows, torch.cat(survivors))],
        _LIMITS,
        message="attacks succeed at a radius and fail at a larger one",
        advice=_ADVICE,
    )


def _no_more_in_the_box(at_radius: int, in_box: int, n: int) -> Finding:
    return Finding(
        check=_CHECK,
        severity=Severity.RED,
        message=f"attacks break {at_radius} of {n} images at the radius, and {in_box} in the whole "
        "box",
        advice=_ADVICE,
        value=(in_box - at_radius) / n,
        threshold=0.0,
    )
