"""Gives a gradient to operations that end it: the value stays, the gradient is a stand-in's.

Source: BPDA, Athalye et al. 2018 (arXiv 1802.00420, section 4.1).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.engine.anatomy.calls import Call
from robustbench_kd.engine.anatomy.soft import (
    any_soft,
    carrying,
    is_gate,
    is_soft,
    keep_scores,
    mark_gate,
    scores_of,
    soft,
    step,
    width,
)

_NEAR_ZERO = 1e-4  # below it the slopes of roots and logarithms are cut off

StandIn: TypeAlias = Callable[[Call, Tensor], Any]

_ROUNDING = ("round", "floor", "ceil", "trunc", "fix", "quantize_per_tensor", "int_repr")
_CASTS = ("to", "byte", "int", "long", "short", "char", "bool", "type", "type_as")
_FLOATS = ("float", "double", "half", "bfloat16")
_LEFT_OVER = ("remainder", "fmod", "frac", "__mod__")
_ABOVE = ("gt", "ge", "greater", "greater_equal", "__gt__", "__ge__")
_BELOW = ("lt", "le", "less", "less_equal", "__lt__", "__le__")
_DIVISIONS = ("div", "divide", "true_divide")


def repaired(call: Call, out: Any) -> Any:
    """Returns what a call gave, with a gradient where the function would end it."""
    if not isinstance(out, Tensor):
        return out
    if call.name == "one_hot":
        return _one_hot(call, out)
    if any_soft(call):
        return _by_soft_arguments(call, out)
    name = call.plain_name
    if name in _TABLES:
        return carrying(out, _TABLES[name](call, out))
    if call.tensor is None and name not in _COMPARISONS:
        return out
    return _of_float(call, out)


def _of_float(call: Call, out: Tensor) -> Tensor:
    name = call.plain_name
    if name in _LEFT_OVER:  # what rounding leaves over does not change in a small step
        return out.detach()
    if name == "argmax":
        dim = call.argument(1, "dim")
        if dim is not None and not isinstance(dim, bool):
            keep_scores(out, call.args[0], dim)
        return out
    if name in _COMPARISONS:
        mark_gate(out)
    stand_in = _STAND_INS.get(name)
    return carrying(out, stand_in(call, out)) if stand_in else out


def _itself(call: Call, _out: Tensor) -> Tensor:
    return call.args[0]  # type: ignore[no-any-return]


def _cast(call: Call, out: Tensor) -> Tensor | None:
    return None if out.is_floating_point() else _itself(call, out)


def _clamped(call: Call, out: Tensor) -> Tensor | None:
    """Returns the values that the bounds left as they were.

    Newer versions of torch give no gradient to a value that equals a bound, as every black or white
    pixel of an image does.
    """
    values: Tensor = call.args[0]
    at_bound = torch.zeros_like(values, dtype=torch.bool)
    for bound in (*call.args[1:], *call.kwargs.values()):
        if isinstance(bound, int | float | Tensor) and not isinstance(bound, bool):
            at_bound |= values == bound
    if not at_bound.any():
        return None
    return torch.where(values == out, values, values.detach())


def _sign(call: Call, _out: Tensor) -> Tensor:
    return torch.tanh(call.args[0] / width(call.args[0]))


def _heaviside(call: Call, _out: Tensor) -> Tensor:
    return step(call.args[0])


def _quotient(call: Call, _out: Tensor) -> Any:
    return call.args[0] / call.args[1]


def _rounded_quotient(call: Call, out: Tensor) -> Any:
    return _quotient(call, out) if call.kwargs.get("rounding_mode") else None


def _above(call: Call, _out: Tensor) -> Any:
    return step(_gap(call))


def _below(call: Call, _out: Tensor) -> Any:
    return step(-_gap(call))


def _gap(call: Call) -> Tensor:
    gap: Tensor = call.args[0] - call.argument(1, "other")
    return gap if gap.is_floating_point() else gap.float()


def _wave(call: Call, _out: Tensor) -> Tensor:
    """Returns a line with the mean slope of a wave over the distance that an attack moves it."""
    values = call.args[0]
    wave = getattr(torch, call.plain_name)
    reach = width(values)
    start = values.detach()
    slope = (wave(start + reach) - wave(start - reach)) / (2 * reach)
    return values * slope  # type: ignore[no-any-return]


def _bounded(call: Call, _out: Tensor) -> Any:
    """Returns the same function a little to the right, where its slope is finite."""
    return replace(call, args=(call.args[0] + _NEAR_ZERO, *call.args[1:])).run()


def _bounded_power(call: Call, out: Tensor) -> Any:
    exponent = call.argument(1, "exponent")
    is_root = isinstance(exponent, float) and 0 < exponent < 1
    return _bounded(call, out) if is_root else None


def assigned(call: Call, before: Tensor) -> Any:
    """Returns a stand-in for a tensor to which values were assigned by a soft mask."""
    after, mask, _ = call.args
    return _where(mask, after.clone(), before)


def assigns_by_soft_mask(call: Call) -> bool:
    """Returns whether a call assigns values where a comparison holds."""
    if call.name != "__setitem__" or not isinstance(call.first, Tensor):
        return False
    mask = call.args[1]
    return isinstance(mask, Tensor) and is_soft(mask) and mask.shape == call.first.shape


def _place_in_table(call: Call, _out: Tensor) -> Any:
    """Returns the place in a sorted table, as it grows with what is looked up."""
    first, second = call.args[0], call.argument(1, "boundaries")
    value, table = (first, second) if call.name == "bucketize" else (second, first)
    if not isinstance(value, Tensor) or not isinstance(table, Tensor) or table.ndim != 1:
        return None
    return value * (len(table) - 1) / (table[-1] - table[0])


_COMPARISONS = {*_ABOVE, *_BELOW}
_TABLES: dict[str, StandIn] = dict.fromkeys(("bucketize", "searchsorted"), _place_in_table)
_STAND_INS: dict[str, StandIn] = {
    **dict.fromkeys(_ROUNDING, _itself),
    **dict.fromkeys(_CASTS, _cast),
    **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_max", "hardtanh"), _clamped),
    **dict.fromkeys(("sign", "sgn"), _sign),
    **dict.fromkeys(("floor_divide", "__floordiv__"), _quotient),
    **dict.fromkeys(_DIVISIONS, _rounded_quotient),
    **dict.fromkeys(("sin", "cos", "tan"), _wave),
    **dict.fromkeys(_ABOVE, _above),
    **dict.fromkeys(_BELOW, _below),
    **dict.fromkeys(("sqrt", "rsqrt", "log", "log2", "log10"), _bounded),
    **dict.fromkeys(("pow", "__pow__"), _bounded_power),
    "heaviside": _heaviside,
}


def _by_soft_arguments(call: Call, out: Tensor) -> Tensor:
    """Returns what a call gave, with the gradient of the same function of the soft arguments."""
    if is_gate(call.first) and call.name in {*_CASTS, *_FLOATS}:
        mark_gate(out)
    try:
        return carrying(out, _soft_result(call, out))
    except (RuntimeError, TypeError, IndexError, ValueError):  # no such function of floats
        return out


def _soft_result(call: Call, out: Tensor) -> Any:
    if call.name in _OF_TRUTH:
        return _OF_TRUTH[call.name](*call.args, **call.kwargs)
    if call.name == "__getitem__":
        return _looked_up(call.args[0], call.args[1])
    if call.name in _CASTS and not out.is_floating_point():
        return soft(call.args[0])
    softened = call.of(soft)
    return repaired(softened, softened.run())


def _where(condition: Tensor, first: Any = 0.0, second: Any = 0.0) -> Any:
    share = soft(condition)
    return share * soft(first) + (1 - share) * soft(second)


def _filled(values: Tensor, mask: Tensor, value: Any) -> Any:
    return _where(mask, value, values)


def _not(value: Tensor) -> Any:
    return 1 - soft(value)


def _both(first: Tensor, second: Tensor) -> Any:
    return soft(first) * soft(second)


def _either(first: Tensor, second: Tensor) -> Any:
    return soft(first) + soft(second) - soft(first) * soft(second)


_OF_TRUTH: dict[str, Callable[..., Any]] = {
    "where": _where,
    "masked_fill": _filled,
    **dict.fromkeys(("__invert__", "bitwise_not", "logical_not"), _not),
    **dict.fromkeys(("__and__", "bitwise_and", "logical_and"), _both),
    **dict.fromkeys(("__or__", "bitwise_or", "logical_or"), _either),
}


def _looked_up(table: Tensor, index: Any) -> Any:
    """Returns what a table of numbers gives at soft places: linear between its entries."""
    if is_soft(table):
        return soft(table)[index]
    if not isinstance(index, Tensor) or table.ndim != 1 or not table.is_floating_point():
        return None
    after = table[(index + 1).clamp(max=len(table) - 1)]
    before = table[(index - 1).clamp(min=0)]
    return soft(index) * (after - before) / 2


def _one_hot(call: Call, out: Tensor) -> Tensor:
    """Returns a one-hot code with the gradient of the softmax of the scores it was chosen by."""
    found = scores_of(call.first)
    if found is None:
        return out
    scores, dim = found
    shares = functional.softmax(scores / width(scores), dim=dim)
    return carrying(out, shares.movedim(dim, -1))
