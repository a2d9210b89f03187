"""Divergences between teacher and student, with the two scales that code bases give them."""

from typing import Literal

import torch
from torch import Tensor

from robustbench_kd.tensors.contracts import Labels, Logits
from robustbench_kd.tensors.losses import kl_divergence

Reduction = Literal["batchmean", "elementmean"]
"""`batchmean` is a mean over examples; `elementmean`, the default of torch, also over classes."""


def softened(target: Logits, logits: Logits, temperature: float = 1.0) -> Tensor:
    """Returns T^2 KL(softmax(target / T) || softmax(logits / T)) of each example, `(n,)`.

    Source: Hinton et al. 2015.
    """
    return temperature**2 * kl_divergence(target / temperature, logits / temperature)


def reduced(values: Tensor, logits: Logits, reduction: Reduction) -> Tensor:
    """Returns the mean of values `(n,)`, divided by the number of classes for `elementmean`."""
    return values.mean() / (logits.shape[1] if reduction == "elementmean" else 1)


def divergence(
    target: Logits, logits: Logits, *, temperature: float = 1.0, reduction: Reduction
) -> Tensor:
    """Returns the softened divergence of a batch, a scalar.

    >>> divergence(torch.zeros(2, 10), torch.zeros(2, 10), reduction="batchmean")
    tensor(0.)
    """
    return reduced(softened(target, logits, temperature), logits, reduction)


def divergence_from(probabilities: Tensor, logits: Logits) -> Tensor:
    """Returns KL(probabilities || softmax(logits)) of each example, `(n,)`.

    A probability may be zero.
    """
    return (
        torch.xlogy(probabilities, probabilities) - probabilities * logits.log_softmax(dim=1)
    ).sum(dim=1)


def trust(logits: Logits, labels: Labels, beta: float) -> Tensor:
    """Returns how far each example's teacher is trusted, softmax(logits)_y ^ beta, `(n,)`.

    Source: Zhu et al. 2022.
    """
    right = logits.log_softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
    return (beta * right).exp().detach()
