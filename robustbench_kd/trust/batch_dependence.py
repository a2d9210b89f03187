"""The answer to an image depends on the other images of the batch."""

import torch
from torch import Tensor

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.contracts import Logits
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._logits import difference

# These are asked in batches of two: batch statistics of a single image are often undefined.
_IMAGES = 8
# Of normalised logits; honest networks stay below 1e-5, whatever kernels a batch size selects.
_LIMIT = 1e-3


def probe(sample: Probe) -> list[Finding]:
    """Returns a red finding if an image gets different answers in a small and in a large batch.

    The difference must exceed what the randomness of the defence explains. Where draws belong to
    batches there is nothing to compare.
    """
    if sample.batched:
        return []
    rows = sample.rows[:_IMAGES]
    large = sample.again[rows]
    small = _in_pairs(sample, rows)
    small_again = _in_pairs(sample, rows)

    far = difference(large, small)
    by_chance = torch.maximum(
        difference(sample.logits, sample.again)[rows], difference(small, small_again)
    )
    differs = far > _LIMIT + 10 * by_chance.max()
    if not bool(differs.any()):
        return []

    count = int(differs.sum())
    most = float(far.max())
    classes = int((large.argmax(dim=1) != small.argmax(dim=1)).sum())
    return [
        Finding(
            check="batch-dependence",
            severity=Severity.RED,
            message=f"{count} of {len(rows)} images get other logits in a batch of 2 than in one "
            f"of {len(sample)}, normalised ones by up to {most:.2g}; {classes} change their class",
            advice="use running statistics in evaluation mode: otherwise an attack on one image "
            "defends another",
            value=most,
            threshold=_LIMIT,
            examples=sample.examples(rows[differs]),
        )
    ]


def _in_pairs(sample: Probe, rows: Tensor) -> Logits:
    """Returns the logits of clean images that are asked in batches of two."""
    pairs = torch.split(rows, 2)
    return torch.cat([sample.ask(sample.images[pair], pair) for pair in pairs])
