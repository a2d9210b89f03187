"""Says whether another form of a model may be asked in its place.

It must answer like the model in logits and gradients, on images that neither was asked about.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from robustbench_kd.tensors.contracts import Classifier, Images, Logits

# Rows of the batches on which forms of a model are compared, and whether with gradients. Each batch
# has other images and another size than the one before: a copy that reads what a hook has stored in
# the original is found out.
_COMPARED = ((5, False), (3, True), (5, True))
_NOISE = 0.5  # of the pixels of compared images
_EXACT = 1e-5  # of a logit: what a sum in fp32 may be off
_USUAL = 0.1  # the size of logits below which their sums are of larger numbers


class Tolerance(NamedTuple):
    """How far another form of a model may be off.

    `logits` is a part of the range of the logits over compared images, `gradients` a part of the
    length of a gradient.
    """

    logits: float
    gradients: float


def require_agreement(
    ask: Classifier, true: Classifier, probe: Images, tolerance: Tolerance
) -> None:
    """Raises what a pass of either raises, and `ValueError` where they disagree on fresh images."""
    generator = torch.Generator().manual_seed(0)
    for rows, with_gradient in _COMPARED:
        points = fresh(probe.repeat(rows, 1, 1, 1)[:rows], generator)
        require_same(ask, true, points.requires_grad_(with_gradient), tolerance)


def fresh(images: Images, generator: torch.Generator) -> Images:
    """Returns images with much noise of a generator on the CPU: nobody was asked about these."""
    noise = torch.rand(images.shape, generator=generator).to(images)
    return torch.lerp(images, noise, _NOISE)


def require_same(ask: Classifier, true: Classifier, images: Images, tolerance: Tolerance) -> None:
    """Compares two forms of a model on images that may want a gradient.

    The true form is asked last: what it leaves behind must not help the other one.
    """
    with torch.set_grad_enabled(images.requires_grad):
        found, gradient = _answers(ask, images)
        expected, slope = _answers(true, images)
    _require_close_logits(found, expected, tolerance.logits)

    if (gradient is None) != (slope is None):
        raise ValueError(f"it {'has no' if gradient is None else 'has a'} gradient any more")
    if gradient is not None and slope is not None:
        _require_close_gradients(gradient, slope, tolerance.gradients)


def _answers(ask: Classifier, images: Images) -> tuple[Logits, Tensor | None]:
    """Returns logits, and the gradient of a mixture of them where they have one."""
    logits = ask(images.clone())  # a model may write into its argument
    if not logits.requires_grad:
        return logits, None
    generator = torch.Generator().manual_seed(1)
    mixture = torch.randn(logits.shape, generator=generator).to(logits)
    # A search may differentiate several times.
    (gradient,) = torch.autograd.grad(
        (logits * mixture).sum(), images, retain_graph=True, materialize_grads=True
    )
    return logits.detach(), gradient


def _require_close_logits(found: Logits, expected: Logits, tolerance: float) -> None:
    scale = (expected.amax(dim=0) - expected.amin(dim=0)).nan_to_num(0).max()
    # Classes may be masked by minus infinity.
    difference = torch.where(found == expected, 0, found - expected).abs()
    if not (difference <= tolerance * scale + _EXACT * expected.abs().clamp(min=_USUAL)).all():
        raise ValueError(
            f"logits changed by {difference.max():.2g}; they differ by {scale:.3g} between images"
        )


def _require_close_gradients(found: Tensor, expected: Tensor, tolerance: float) -> None:
    difference = (found - expected).flatten(1).norm(dim=1)
    length = torch.maximum(found.flatten(1).norm(dim=1), expected.flatten(1).norm(dim=1))
    change = torch.where(difference == 0, 0, difference / length).mean()
    if not change <= tolerance:
        raise ValueError(f"gradients changed by {change:.2g} of their length")
