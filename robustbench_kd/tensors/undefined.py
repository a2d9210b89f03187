"""Answers that are no numbers: NaN and infinities at an image that an attack has made.

A model that gives NaN at a point says nothing there: the point does not count. Minus infinity is
how people mask classes that cannot be: it is a very low logit.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.tensors.contracts import Labels

_BELOW = 10.0  # how far a masked class lies below the lowest other logit
_CERTAIN = 10.0  # the logit of the label where the model says nothing


def is_undefined(answers: Tensor) -> Tensor:
    """Returns which answers `(..., classes)` say nothing: NaN, infinity, or every class masked."""
    return ~(answers < math.inf).all(dim=-1) | (answers == -math.inf).all(dim=-1)


def unmasked(answers: Tensor) -> Tensor:
    """Returns answers `(..., classes)` with minus infinity as a logit below all others.

    >>> unmasked(torch.tensor([[2.0, -torch.inf, 1.0]]))
    tensor([[ 2., -9.,  1.]])
    """
    finite = answers.isfinite()
    lowest = torch.where(finite, answers, math.inf).amin(dim=-1, keepdim=True)
    return torch.where(finite, answers, lowest.detach() - _BELOW)


def settled(answers: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
    """Returns finite answers `(..., n, classes)`, and which of them `(..., n)` were undefined.

    An undefined one becomes a clear answer for the label `(n,)`, without a gradient: an attack
    gains nothing there.
    """
    if answers.device.type == "cpu" and bool(answers.isfinite().all()):  # no question to a GPU
        return answers, torch.zeros(answers.shape[:-1], dtype=torch.bool)

    undefined = is_undefined(answers)
    certain = _CERTAIN * functional.one_hot(labels, answers.shape[-1]).to(answers.dtype)
    return torch.where(undefined[..., None], certain, unmasked(answers)), undefined
