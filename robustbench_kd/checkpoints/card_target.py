"""Describes the target of a card, with its parts."""

from dataclasses import replace
from pathlib import Path

from robustbench_kd.checkpoints.card import MOST_PARTS, Architecture, Card, read_card
from robustbench_kd.checkpoints.imports import is_factory
from robustbench_kd.checkpoints.subject import Choices, Target
from robustbench_kd.core.errors import CheckpointError

_DEEPEST = 16  # cards within each other


def target_of_card(
    path: Path, card: Card, choices: Choices, within: tuple[Path, ...] = ()
) -> Target:
    """Returns the target of a card; `within` are the cards that it is a part of.

    Raises `CheckpointError` for a card that names code without leave, that is a part of itself, or
    that has too many parts.
    """
    if card.parts:
        target = _composed(path, card, choices, within)
    else:
        target = _described(path, card, choices)
    if card.weights is None:
        return target
    return replace(target, weights=path.parent / card.weights.file, sha256=card.weights.sha256)


def _described(path: Path, card: Card, choices: Choices) -> Target:
    architecture = card.architecture or Architecture(name="")
    if is_factory(architecture.name) and not (choices.trust_code or choices.architecture):
        raise CheckpointError(
            f"card '{path}' names code, {architecture.name}: read it, then give --trust-code to "
            "run it"
        )
    arguments = architecture.arguments
    if not is_factory(architecture.name):
        arguments = {"classes": card.classes, "channels": card.image_shape[0]} | arguments
    return Target(
        name=card.name,
        architecture=architecture.name,
        arguments=arguments,
        normalisation=card.normalisation,
        family=card.family,
        card=card,
    )


def _composed(path: Path, card: Card, choices: Choices, within: tuple[Path, ...]) -> Target:
    """Returns the target of a card with parts, each described by a card beside it."""
    here = path.resolve()
    if here in within:
        raise CheckpointError(f"card '{path}' is a part of itself: name other parts")
    if len(within) == _DEEPEST:
        raise CheckpointError(f"card '{path}' is the {_DEEPEST}th within another: join some parts")

    of_parts = Choices(trust_code=choices.trust_code)
    parts: list[Target] = []
    for name in card.parts:
        file = path.parent / name
        parts.append(target_of_card(file, read_card(file), of_parts, (*within, here)))
        if sum(map(_part_count, parts)) > MOST_PARTS:
            raise CheckpointError(
                f"card '{path}' has more than {MOST_PARTS} parts, with those of its parts: name "
                "fewer"
            )
    return Target(
        name=card.name,
        architecture="",
        arguments=dict(card.arguments),
        family=card.family,
        card=card,
        parts=tuple(parts),
    )


def _part_count(target: Target) -> int:
    return 1 + sum(map(_part_count, target.parts))
