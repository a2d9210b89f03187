"""Gates keep or replace each value: sparsifiers, thresholds, k winners who take all.

A gate that is shut hides the gradient of what is behind it. Opened, it passes the gradient as if it
kept every value, which is how MeanSparse falls (BPDA by the identity).
"""

from typing import Any

from torch import Tensor

from robustbench_kd.engine.anatomy.calls import Call
from robustbench_kd.engine.anatomy.soft import is_gate, with_gradient

_SHRINKING = {"hardshrink", "softshrink", "threshold", "masked_fill"}
_PRODUCTS = {"mul", "__mul__", "__rmul__", "multiply"}


def opened(call: Call, out: Any) -> Any:
    """Returns what a gate gave, with the gradient that it would have if it were open."""
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return out
    passing = _passing(call)
    if passing is None or passing.shape != out.shape or not passing.requires_grad:
        return out
    return with_gradient(out, passing)


def _passing(call: Call) -> Tensor | None:
    """Returns what would pass an open gate, None where the call is no gate."""
    name = call.plain_name
    if name in _SHRINKING:
        return call.tensor
    if name in _PRODUCTS and len(call.args) == 2 and any(map(is_gate, call.args)):
        first, second = call.args
        passing = second if is_gate(first) else first
        return passing if isinstance(passing, Tensor) else None
    if name == "where" and len(call.args) == 3:
        return _both_branches(call)
    return None


def _both_branches(call: Call) -> Tensor | None:
    total: Tensor | None = None
    for branch in call.args[1:]:
        if isinstance(branch, Tensor) and branch.requires_grad:
            total = branch if total is None else total + branch
    return total
