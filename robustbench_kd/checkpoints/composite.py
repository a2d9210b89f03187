"""Defences that are composed of parts.

Built by their family, filled with their own weights, identified by all of them.
"""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustbench_kd.checkpoints._text import listed, one_line, spelled
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
    defence = build_family(target.family, models, target.arguments, classes=classes, shape=shape)
    if target.weights:
        if target.sha256 and sha256(target.weights) != target.sha256:
            raise CheckpointError(
                f"'{target.weights}' is not the file its card describes: the sha256 differs"
            )
        _load_own(defence, target.weights)
    elif own_state(defence):
        raise CheckpointError(
            f"'{target.name}' has weights of its own ({listed(own_state(defence))}): its card "
            "names none"
        )
    defence.eval()
    notes = []
    for part in parts:
        notes += [f"{part.name}: {note}" for note in part.notes]
    return Subject(
        name=target.name,
        family=target.family,
        model=defence,
        network=defence,
        architecture=_spelled(target, parts),
        normalisation=None,
        checkpoint_sha256=_digest(target, parts),
        code_sha256="".join(part.code_sha256 for part in parts),
        notes=tuple(notes),
        parameters=sum(parameter.numel() for parameter in defence.parameters()),
    )


def build_family(
    family: str, parts: Sequence[nn.Module], arguments: Mapping[str, Any], **from_data: Any
) -> nn.Module:
    """Builds a defence of a family from its parts.

    Raises `UsageError` for arguments that are unknown or impossible.
    """
    assemble = module("defences", find("defences", family, "family").stem).assemble
    accepted = inspect.signature(assemble).parameters
    known = [name for name in accepted if name != "parts"]
    for argument in arguments:
        if argument not in accepted:
            raise unknown_name(f"argument of {family}", argument, known)
    fitting = {key: value for key, value in from_data.items() if key in accepted}
    try:
        defence: nn.Module = assemble(parts, **{**fitting, **arguments})
    except RkdError:
        raise
    except Exception as error:  # layers raise anything for a width of -1, 2.5 or "wide"
        given = spelled(arguments).strip()
        raise UsageError(
            f"family '{family}' cannot be built with {given}: {one_line(error)}"
        ) from error
    return defence


def own_state(defence: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a composed defence that are not its parts'."""
    state = defence.state_dict()
    return {name: state[name] for name in state if not name.startswith(_PARTS)}


def _load_own(defence: nn.Module, path: Path) -> None:
    content, _ = read_weights(path)
    state = dict(find_state(content, source=path.name).state)
    try:
        missing, unexpected = defence.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"'{path.name}' does not fit its card: {one_line(error)}") from error
    missing = [name for name in missing if not name.startswith(_PARTS)]
    unexpected += [name for name in state if name.startswith(_PARTS)]
    if missing or unexpected:
        raise CheckpointError(
            f"'{path.name}' does not fit its card: missing {listed(missing) or 'nothing'}, "
            f"unexpected {listed(unexpected) or 'nothing'}"
        )


def _spelled(target: Target, parts: Sequence[Subject]) -> str:
    architectures = ", ".join(part.architecture for part in parts)
    return f"{target.family}{spelled(target.arguments)} of {architectures}"


def _digest(target: Target, parts: Sequence[Subject]) -> str:
    digests = [sha256(target.weights) if target.weights else ""]
    for part in parts:
        digests.append(part.checkpoint_sha256)
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
