"""The loss jumps within a tiny neighbourhood (IoAF I2)."""

import torch
from torch import Tensor

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.losses import cross_entropy
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._grade import Limits, median, of_sample

_REPEATS = 20
_WIDTH = 1e-3  # of the cube of noise, in pixels of [0, 1]
_CHANGE = 0.1  # by which the loss may change on average; both from Pintor et al. 2022
_LIMITS = Limits(yellow=0.5)


def probe(sample: Probe) -> list[Finding]:
    """Returns a yellow finding if noise changes the cross-entropy of half of all images.

    The limit is a change by a tenth. Source: indicator I2 of Pintor et al. 2022 (arXiv 2106.09947):
    the mean over uniform noise of the change relative to the loss, at most 1.
    """
    change = changes(sample)
    return of_sample(
        "unstable-loss",
        sample,
        sample.rows[~(change <= _CHANGE)],
        _LIMITS,
        message=f"unstable loss (IoAF I2): noise of {_WIDTH / 2:g} changes it by "
        f"{median(change):.0%} (median), by over {_CHANGE:.0%}",
        advice="smooth it: average gradients over noisy copies, or take larger steps",
    )


def changes(sample: Probe) -> Tensor:
    """Returns the mean change of the loss `(n,)` under noise, relative to it and at most 1."""
    loss = cross_entropy(sample.logits, sample.labels)
    size = torch.where(loss == 0, 1.0, loss.abs())

    relative = []
    for repeat in range(_REPEATS):
        noise = sample.uniform("unstable", repeat) * _WIDTH / 2
        points = (sample.images + noise).clamp(0, 1)
        noisy = cross_entropy(sample.ask(points), sample.labels)
        relative.append((noisy - loss).abs() / size)
    return torch.stack(relative).mean(dim=0).clamp(max=1)
