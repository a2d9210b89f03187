"""The forward pass runs backward passes of its own."""

from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from robustbench_kd.core.errors import ModelError
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import Probe

_REFUSED = "saved tensor hooks"  # part of torch's message when torch.func meets hooks


def probe(sample: Probe) -> list[Finding]:
    """Returns a yellow finding if a forward pass reads tensors that autograd saved.

    `autograd.grad`, `backward` and optimisers read them, and hooks of autograd can see that without
    tracing Python or replacing functions. `torch.func.grad` is noticed because it refuses the
    hooks. An optimisation without gradients is not noticed.
    """
    reads = _reads(sample)
    if not reads:
        return []

    how = "through torch.func" if reads < 0 else f"and read {reads} saved tensors"
    return [
        Finding(
            check="optimisation-in-forward",
            severity=Severity.YELLOW,
            message=f"the forward pass computed gradients of its own, {how}",
            advice="attack the inner optimisation too: differentiate through it, or attack its "
            "starting point",
            value=float(max(reads, 1)),
            threshold=0.0,
        )
    ]


def _reads(sample: Probe) -> int:
    """Returns how many saved tensors one forward pass reads, or -1 where torch.func hides it."""
    reads = 0

    def read(saved: Any) -> Any:
        nonlocal reads
        reads += 1
        return saved

    rows = sample.rows[:1]
    try:
        with torch.no_grad(), saved_tensors_hooks(lambda tensor: tensor, read):
            sample.answer(sample.images[rows], rows)
    except (RuntimeError, ModelError) as error:
        if _REFUSED not in str(error):
            raise
        return -1
    return reads
