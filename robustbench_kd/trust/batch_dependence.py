"""The answer to an image depends on the other images of the batch."""

import torch

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._logits import difference

# That are asked about two by two: batch statistics of a single image are often undefined.
_IMAGES = 8
# Of normalised logits; honest networks stay below 1e-5, whatever kernels a batch size selects.
_LIMIT = 1e-3


def probe(sample: Probe) -> list[Finding]:
    """Returns a red finding where an image gets another answer in a small batch than in a large one, beyond what chance explains."""
    rows = sample.rows[:_IMAGES]
    together = sample.again[rows]
    apart, repeated = (
        torch.cat([sample.ask(sample.images[pair], pair) for pair in torch.split(rows, 2)])
        for _ in range(2)
    )
    far = difference(together, apart)
    chance = torch.maximum(
        difference(sample.logits, sample.again)[rows], difference(apart, repeated)
    )
    differs = far > _LIMIT + 10 * chance.max()
    if not bool(differs.any()):
        return []
    classes = int((together.argmax(dim=1) != apart.argmax(dim=1)).sum())
    return [
        Finding(
            check="batch-dependence",
            severity=Severity.RED,
            message=f"by twos and among {len(sample)}, {int(differs.sum())} of {len(rows)} images get other logits, "
            f"normalised ones by up to {float(far.max()):.2g}, and {classes} another class",
            advice="use running statistics in evaluation mode: otherwise an attack on one image defends another",
            value=float(far.max()),
            threshold=_LIMIT,
            examples=sample.examples(rows[differs]),
        )
    ]
