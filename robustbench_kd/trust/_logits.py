"""Compares two answers of a defence to the same images."""

from torch import Tensor
from torch.nn import functional

from robustbench_kd.core.threat import Norm
from robustbench_kd.tensors.contracts import Logits
from robustbench_kd.tensors.hyperplane import length


def difference(first: Logits, second: Logits) -> Tensor:
    """Returns the Euclidean distance `(n,)` of logits that are scaled to length 1.

    Source: `checks.py` of AutoAttack.
    """
    return length(functional.normalize(first, dim=1) - functional.normalize(second, dim=1), Norm.L2)


def changed(first: Logits, second: Logits, limit: float) -> Tensor:
    """Returns which rows, bool `(n,)`, differ by more than a limit or predict different classes."""
    return ~(difference(first, second) <= limit) | (first.argmax(dim=1) != second.argmax(dim=1))
