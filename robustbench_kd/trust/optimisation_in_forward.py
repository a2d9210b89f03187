"""The forward pass runs backward passes of its own."""

from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from robustbench_kd.core.errors import ModelError
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import Probe

_REFUSED = "saved tensor hooks"  # torch's own words where torch.func meets hooks


def probe(sample: Probe) -> list[Finding]:
    """Returns a yellow finding where tensors that were saved for a backward pass are read during a forward pass.

    That is what `autograd.grad`, `backward` and optimisers do, and what hooks of autograd can see
    without tracing Python or replacing functions. `torch.func.grad` is noticed because it refuses
    the hooks. An optimisation without gradients is not.
    """
    read = _reads(sample)
    if not read:
        return []
    how = "through torch.func" if read < 0 else f"and read {read} saved tensors"
    return [
        Finding(
            check="optimisation-in-forward",
            severity=Severity.YELLOW,
            message=f"the forward pass computed gradients of its own, {how}",
            advice="attack the inner optimisation too: differentiate through it, or attack what it starts from",
            value=float(max(read, 1)),
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
