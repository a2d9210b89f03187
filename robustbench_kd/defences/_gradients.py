"""Gradients that a family computes, or that it gives instead of its own."""

import torch
from torch import Tensor

from robustbench_kd.tensors.contracts import Classifier, Images, Labels, Logits
from robustbench_kd.tensors.losses import cross_entropy


def with_gradient_of(value: Tensor, stand_in: Tensor) -> Tensor:
    """Returns the value, bit for bit, with the gradient of a stand-in of the same shape.

    Source: backward pass differentiable approximation, Athalye et al. 2018 (arXiv 1802.00420),
    section 4.1.
    """
    return value.detach() + (stand_in - stand_in.detach())


def slope(classifier: Classifier, points: Images, labels: Labels) -> tuple[Logits, Tensor]:
    """Returns logits and the gradient of each row's cross-entropy at its own point, both detached.

    It works whether or not the caller records gradients, and leaves no graph behind.
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = classifier(points)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, labels).sum(), points)
    return logits.detach(), gradient
