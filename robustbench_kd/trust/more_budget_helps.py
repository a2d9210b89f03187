"""More steps or another restart still break more images."""

import torch

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust._grade import Limits, of_sample

# Honest networks lose up to 3 % by more steps and 9 % by a restart, masked ones 22 to 38 %.
_LIMITS = Limits(yellow=0.05, red=0.2)


def search(attacks: ShortAttacks) -> list[Finding]:
    """Returns a finding if twice the 50 steps of APGD on the margin, or another start, help.

    Source of the symptom: Carlini et al. 2019 (arXiv 1902.06705): twice the steps must not change
    the result.
    """
    longer = attacks.prolonged.broken
    again = attacks.repeated.broken
    rows = attacks.sample.rows
    return of_sample(
        "more-budget-helps",
        attacks.sample,
        rows[torch.isin(rows, torch.cat([longer, again]))],
        _LIMITS,
        message=f"twice the steps break {len(longer)} more, another start {len(again)} more; "
        "together they still help",
        advice="raise steps and restarts until nothing changes (--suite plus), or find out what "
        "hinders the gradient",
    )
