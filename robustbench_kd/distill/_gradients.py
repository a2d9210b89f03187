"""Indirect gradient matching, and the ramps that let it in."""

from typing import Literal

from torch import Tensor

from robustbench_kd.tensors.distillation import BatchContext, Progress
from robustbench_kd.tensors.losses import kl_divergence

Ramp = Literal["linear_total", "linear_200", "constant"]


def ramp(progress: Progress, rule: Ramp) -> float:
    """Returns the fraction of a weight in an epoch, counted from 1.

    `linear_total` is the paper's epoch / epochs; `linear_200` is what the authors' code computes,
    epoch / 200 whatever the number of epochs, so that 300 epochs end at 1.5 and 100 at 0.5;
    `constant` is 1.
    """
    match rule:
        case "linear_total":
            return progress.epoch / progress.epochs
        case "linear_200":
            return progress.epoch / 200
        case "constant":
            return 1.0


def gradient_match(context: BatchContext, *, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """Returns KL(softmax(D_T) || softmax(D_S)) of each example, `(n,)`.

    D = f(x + beta d) - f(x - gamma d).

    d is the host's perturbation. Where networks are locally linear D is the gradient's product with
    (beta + gamma) d, so that matching D for ever-changing d matches input gradients without
    differentiating twice. x - gamma d is not clipped to the box. Source: Lee et al. 2025, arXiv
    2312.03286.
    """
    images, attacked = context.images, context.attacked
    # As in the authors' code the clean images pass, too, if only for the running statistics of
    # batch normalisation: those of x + d and x - d alone fit clean images badly.
    context.student(images)
    offset = attacked - images
    ahead = attacked if beta == 1 else images + beta * offset
    behind = images - gamma * offset
    expected = context.teacher(ahead) - context.teacher(behind)
    return kl_divergence(expected, context.student(ahead) - context.student(behind))
