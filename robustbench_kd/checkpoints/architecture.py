"""Turns the name of an architecture or factory into a network with random weights."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from robustbench_kd.checkpoints._text import one_line, pairs
from robustbench_kd.checkpoints.budget import MOST_PARAMETERS, counted
from robustbench_kd.checkpoints.imports import find_code, import_path, is_factory
from robustbench_kd.checkpoints.state import fit
from robustbench_kd.checkpoints.statistics import State
from robustbench_kd.core.errors import CheckpointError, RkdError, UsageError, unknown_name
from robustbench_kd.core.plugins import components, find, module


def build_network(
    name: str,
    arguments: Mapping[str, Any],
    *,
    classes: int,
    shape: tuple[int, int, int],
    most: int = MOST_PARAMETERS,
) -> nn.Module:
    """Builds an architecture for `classes` and images of `shape` (channels, height, width).

    Arguments override what follows from the data set. A factory gets these arguments only. Raises
    `UsageError` for an unknown name, an argument that is unknown or impossible, or a network of
    more than `most` parameters, `CheckpointError` where a factory fails.
    """
    if is_factory(name):
        return _from_factory(name, arguments)
    if name.endswith(".py"):
        raise UsageError(
            f"'{name}' is a file: say which function of it builds the network, '{name}:FUNCTION'"
        )
    component = find("models", name, "architecture")
    build = module("models", component.stem).build
    accepted = inspect.signature(build).parameters
    for argument in arguments:
        if argument not in accepted:
            raise unknown_name(f"argument of {name}", argument, accepted)

    from_data = {"classes": classes, "channels": shape[0], "size": shape[1]}
    fitting = {key: value for key, value in from_data.items() if key in accepted}
    with counted(most):
        return _built(name, build, {**fitting, **component.arguments, **arguments})


def nearest_architecture(state: State, *, classes: int, shape: tuple[int, int, int]) -> str:
    """Returns the hint `; nearest: --arch resnet18` for the best fit above 0.5, or nothing."""
    nearest = ""
    best_fit = 0.5
    for name in components("models"):
        fit_of_name = _fit_of(name, state, classes, shape)
        if fit_of_name > best_fit:
            nearest = f"; nearest: --arch {name}"
            best_fit = fit_of_name
    return nearest


def _fit_of(name: str, state: State, classes: int, shape: tuple[int, int, int]) -> float:
    with torch.device("meta"):
        network = build_network(name, {}, classes=classes, shape=shape)
    return fit(state, network.state_dict())


def _built(name: str, build: Callable[..., nn.Module], arguments: dict[str, Any]) -> nn.Module:
    try:
        return build(**arguments)
    except RkdError:
        raise
    except Exception as error:  # layers raise anything for a width of -1, 2.5 or "wide"
        raise UsageError(
            f"architecture '{name}' cannot be built with {' '.join(pairs(arguments))}: "
            f"{one_line(error)}"
        ) from error


def _from_factory(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    factory = find_code(name)
    try:
        with import_path(name.rpartition(":")[0]):  # a factory may import when it is called
            network = factory(**arguments)
    except (Exception, SystemExit) as error:  # the user's own code can raise anything
        raise CheckpointError(
            f"factory '{name}' failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise CheckpointError(
            f"expected factory '{name}' to return a torch.nn.Module, got "
            f"{type(network).__name__}{_module_within(network)}"
        )
    return network


def _module_within(made: object) -> str:
    """Returns what to do about what a factory has made in place of a module."""
    if isinstance(made, tuple | list) and any(isinstance(part, nn.Module) for part in made):
        return ": return the model alone"
    if isinstance(made, type) and issubclass(made, nn.Module):
        return f": return {made.__name__}(), not the class"
    if callable(made):
        return (
            ": return the network itself, or wrap the function f: class Model(torch.nn.Module): "
            "forward = lambda self, images: f(images)"
        )
    return ""
