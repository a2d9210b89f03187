"""Losses of logits `(n, classes)` and labels `(n,)`, one value per example, `(n,)`.

The attacker *maximises* each of them except `margin`. The margin says how far an example is from
being misclassified, and the attacker minimises it.
"""

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.tensors.contracts import Labels, Logits

_TINY = 1e-12


def cross_entropy(logits: Logits, labels: Labels) -> Tensor:
    """Returns minus the log-probability of the label; the attacker maximises it."""
    return functional.cross_entropy(logits, labels, reduction="none")


def kl_divergence(target: Logits, logits: Logits) -> Tensor:
    """Returns KL(softmax(target) || softmax(logits)) in nats; the attacker changes `logits`.

    Its mean is what PyTorch calls `batchmean`.
    """
    log_target = target.log_softmax(dim=1)
    log_softmax = logits.log_softmax(dim=1)
    return (log_target.exp() * (log_target - log_softmax)).sum(dim=1)


def margin(logits: Logits, labels: Labels) -> Tensor:
    """Returns z_y - max_{i != y} z_i, positive while the label wins; the attacker *minimises* it.

    Raises `UsageError` for fewer than two classes.

    >>> margin(torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([1]))
    tensor([2.])
    """
    _require(logits, 2, "the margin")
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return _pick(logits, labels) - others.max(dim=1).values


def dlr(logits: Logits, labels: Labels) -> Tensor:
    """Returns the difference of logits ratio, -(z_y - max_{i != y} z_i) / (z_1st - z_3rd + 1e-12).

    The attacker maximises it. It does not change when the logits are shifted or scaled by a
    positive number. Source: Croce and Hein 2020, equation 6. Raises `UsageError` for fewer than
    three classes.
    """
    _require(logits, 3, "the DLR loss")
    top = logits.topk(3, dim=1).values
    return -margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(logits: Logits, labels: Labels, targets: Labels) -> Tensor:
    """Returns the DLR loss towards a target class; the attacker maximises it.

    It is -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2 + 1e-12). Source: Croce and Hein 2020,
    equation 7. Raises `UsageError` for fewer than four classes.
    """
    _require(logits, 4, "the targeted DLR loss")
    top = logits.topk(4, dim=1).values
    scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY
    return (_pick(logits, targets) - _pick(logits, labels)) / scale


def _pick(logits: Logits, labels: Labels) -> Tensor:
    """Returns the logit `(n,)` of each row's label."""
    return logits.gather(1, labels[:, None]).squeeze(1)


def _require(logits: Logits, classes: int, name: str) -> None:
    if logits.shape[1] < classes:
        raise UsageError(
            f"expected at least {classes} classes for {name}, got {logits.shape[1]}: "
            "use another loss"
        )
