"""Defences that are composed of parts: built by their family, filled with their own weights."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustbench_kd.checkpoints._text import listed, one_line, pairs
from robustbench_kd.checkpoints.budget import counted, parameters_for
from robustbench_kd.checkpoints.state import find_state
from robustbench_kd.checkpoints.subject import Subject, Target
from robustbench_kd.checkpoints.weights import read_weights, sha256
from robustbench_kd.core.errors import CheckpointError, RkdError, UsageError, unknown_name
from robustbench_kd.core.plugins import find, module

_PARTS = "parts."


def compose(
    target: Target, parts: Sequence[Subject], *, classes: int, shape: tuple[int, int, int]
) -> Subject:
    """Builds a composed defence of loaded parts; raises like `checkpoints.target.load`."""
    models = [part.model for part in parts]
    with counted(parameters_for(target.weights)):
        defence = build_family(
            target.family, models, target.arguments, classes=classes, shape=shape
        )
    _fill(defence, target)
    defence.eval()

    code_sha256 = ""
    notes: list[str] = []
    for part in parts:
        code_sha256 += part.code_sha256
        notes += [f"{part.name}: {note}" for note in part.notes]

    return Subject(
        name=target.name,
        family=target.family,
        model=defence,
        network=defence,
        architecture=_spelled(target, parts),
        normalisation=None,
        checkpoint_sha256=_digest(target, parts),
        code_sha256=code_sha256,
        notes=tuple(notes),
        parameters=sum(parameter.numel() for parameter in defence.parameters()),
    )


def build_family(
    family: str, parts: Sequence[nn.Module], arguments: Mapping[str, Any], **from_data: Any
) -> nn.Module:
    """Builds a defence of a family from its parts.

    Arguments override what follows from the data set. Raises `UsageError` for arguments that are
    unknown or impossible.
    """
    assemble = module("defences", find("defences", family, "family").stem).assemble
    accepted = dict(inspect.signature(assemble).parameters)
    for argument in arguments:
        if argument not in accepted:
            accepted.pop("parts", None)
            raise unknown_name(f"argument of {family}", argument, accepted)

    fitting = {key: value for key, value in from_data.items() if key in accepted}
    try:
        defence: nn.Module = assemble(parts, **{**fitting, **arguments})
    except RkdError:
        raise
    except Exception as error:  # layers raise anything for a width of -1, 2.5 or "wide"
        raise UsageError(
            f"family '{family}' cannot be built with {' '.join(pairs(arguments))}: "
            f"{one_line(error)}"
        ) from error
    return defence


def own_state(defence: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a composed defence that do not belong to its parts."""
    state = defence.state_dict()
    return {name: value for name, value in state.items() if not name.startswith(_PARTS)}


def _fill(defence: nn.Module, target: Target) -> None:
    """Loads the weights that the card names, after a check of their sha256."""
    if target.weights is None:
        own = own_state(defence)
        if own:
            raise CheckpointError(
                f"'{target.name}' has weights of its own ({listed(own)}): its card names none"
            )
        return
    if target.sha256 and sha256(target.weights) != target.sha256:
        raise CheckpointError(
            f"'{target.weights}' is not the file its card describes: the sha256 differs"
        )
    _load_weights(defence, target.weights)


def _load_weights(defence: nn.Module, path: Path) -> None:
    content, _ = read_weights(path)
    state = find_state(content, source=path.name).state
    try:
        absent, _ = defence.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"'{path.name}' does not fit its card: {one_line(error)}") from error

    own = own_state(defence)
    missing = [name for name in absent if name in own]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        raise CheckpointError(
            f"'{path.name}' does not fit its card: missing {listed(missing) or 'nothing'}, "
            f"unexpected {listed(unexpected) or 'nothing'}"
        )


def _spelled(target: Target, parts: Sequence[Subject]) -> str:
    arguments = dict(sorted(target.arguments.items()))
    built = " ".join([target.family, *pairs(arguments)])
    return f"{built} of {', '.join(part.architecture for part in parts)}"


def _digest(target: Target, parts: Sequence[Subject]) -> str:
    """Returns one sha256 of the own weights and of the parts in their order."""
    digests = sha256(target.weights) if target.weights else ""
    for part in parts:
        digests += f" {part.checkpoint_sha256}"
    return hashlib.sha256(digests.encode()).hexdigest()
