"""Folds batch normalisation into the convolution or linear layer before it.

In evaluation mode both are linear, so that one layer can say what two said (Jacob et al. 2018,
arXiv 1712.05877, section 3.2).
"""

import copy
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, fx, nn

_FOLDABLE: dict[type, tuple[type, ...]] = {
    nn.BatchNorm1d: (nn.Conv1d, nn.Linear),
    nn.BatchNorm2d: (nn.Conv2d,),
    nn.BatchNorm3d: (nn.Conv3d,),
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fold(module: nn.Module) -> None:
    """Folds what it can, in place.

    The module must be in evaluation mode. Its answers should be compared: code that uses the
    weights of a layer otherwise than by calling it is not noticed.
    """
    # Tracing may leave its stand-ins in what it traces.
    for layer, norm in _pairs(copy.deepcopy(module)):
        _merge(module.get_submodule(layer), module.get_submodule(norm))
        replace_part(module, norm, nn.Identity())


def replace_part(module: nn.Module, name: str, part: nn.Module) -> None:
    """Puts another part in the place of one, which is named as in `named_modules`."""
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, part)


def _pairs(module: nn.Module, prefix: str = "") -> list[tuple[str, str]]:
    """Returns the names of each layer and the normalisation that it can take in.

    A module that cannot be traced is divided into its children; then only neighbours in a sequence
    are pairs.
    """
    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # noqa: BLE001  # tracing runs foreign code, which can raise anything
        inner: list[tuple[str, str]] = []
        for name, child in module.named_children():
            inner += _pairs(child, f"{prefix}{name}.")
        return [*_neighbours(module, prefix), *inner]
    return _following(module, graph, prefix)


def _neighbours(module: nn.Module, prefix: str) -> list[tuple[str, str]]:
    if type(module) is not nn.Sequential:
        return []
    found = []
    for (name, layer), (after, norm) in pairwise(module.named_children()):
        if _fit(layer, norm):
            found.append((prefix + name, prefix + after))
    return found


def _following(module: nn.Module, graph: fx.Graph, prefix: str) -> list[tuple[str, str]]:
    """Returns the pairs of a traced module that can be folded.

    Both are called once, and nothing else uses the tensor between them.
    """
    parts = dict(module.named_modules())
    calls = {node: str(node.target) for node in graph.nodes if node.op == "call_module"}
    often = Counter(calls.values())
    found = []
    for node, norm in calls.items():
        layer = _only_source(node, calls)
        if layer and often[layer] == often[norm] == 1 and _fit(parts[layer], parts[norm]):
            found.append((prefix + layer, prefix + norm))
    return found


def _only_source(node: fx.Node, calls: Mapping[fx.Node, str]) -> str | None:
    """Returns the layer whose output goes to this node alone."""
    source = node.args[0] if node.args else None
    if isinstance(source, fx.Node) and len(source.users) == 1:
        return calls.get(source)
    return None


def has_habits(part: nn.Module) -> bool:
    """Tells whether hooks or a forward of its own change what a layer takes or gives.

    What replaces the layer would ignore them.
    """
    return "forward" in vars(part) or any(getattr(part, hooks) for hooks in _HOOKS)


def _fit(layer: nn.Module, norm: nn.Module) -> bool:
    if has_habits(layer) or has_habits(norm):
        return False
    fixed = not norm.training and getattr(norm, "running_mean", None) is not None
    return fixed and type(layer) in _FOLDABLE.get(type(norm), ())


def _merge(layer: Any, norm: Any) -> None:
    """Makes a normalisation part of a layer.

    The computation is in float64, so that only the last rounding matters.
    """
    weight, mean, variance = (
        _exact(value) for value in (layer.weight, norm.running_mean, norm.running_var)
    )
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * _exact(norm.weight)
    shift = -mean
    if layer.bias is not None:
        shift = _exact(layer.bias) - mean
    bias = shift * scale
    if norm.bias is not None:
        bias = bias + _exact(norm.bias)
    like = layer.weight
    layer.weight = nn.Parameter(
        (weight * scale.view(-1, *[1] * (weight.ndim - 1))).to(like), requires_grad=False
    )
    layer.bias = nn.Parameter(bias.to(like), requires_grad=False)


def _exact(value: Tensor) -> Tensor:
    return value.detach().cpu().double()  # some devices have no float64
