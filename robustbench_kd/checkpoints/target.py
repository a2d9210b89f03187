"""Targets of commands: described before anything is loaded, loaded once the data set is known."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from robustbench_kd.checkpoints._text import pairs
from robustbench_kd.checkpoints.architecture import build_network, nearest_architecture
from robustbench_kd.checkpoints.budget import parameters_for
from robustbench_kd.checkpoints.card import Arguments, Normalisation, read_card
from robustbench_kd.checkpoints.card_target import target_of_card
from robustbench_kd.checkpoints.composite import build_family, compose
from robustbench_kd.checkpoints.imports import code_digest, is_factory
from robustbench_kd.checkpoints.listing import (
    WEIGHTS_SUFFIXES,
    name_of,
    targets_in,
    weights_of,
)
from robustbench_kd.checkpoints.normalisation import parse_normalisation
from robustbench_kd.checkpoints.sharded import is_index
from robustbench_kd.checkpoints.state import Found, classes_in, find_state, fit, load_state
from robustbench_kd.checkpoints.subject import Choices, Subject, Target
from robustbench_kd.checkpoints.weights import read_weights, sha256
from robustbench_kd.checkpoints.zoo import ZOOS, load_from_zoo
from robustbench_kd.core.errors import CheckpointError, MissingError, UsageError
from robustbench_kd.core.text import printable
from robustbench_kd.tensors.oracle import guarded


def describe(text: str, choices: Choices) -> list[Target]:
    """Describes a target: a card, a weights file, a folder of these, a library's id, or a factory.

    Raises `UsageError` or `CheckpointError` for anything else.
    """
    if _library(text) not in ZOOS and Path(text).is_dir():
        return _from_folder(Path(text), choices)
    described = _describe_one(text, choices)
    return [replace(described, name=printable(described.name), text=text)]


def _describe_one(text: str, choices: Choices) -> Target:
    library, _, identifier = text.partition(":")
    if library in ZOOS and identifier:
        return _from_code(identifier.rpartition("/")[2], text, choices)

    path = Path(text)
    if path.suffix == ".toml":
        return _from_card(path, choices)
    if path.exists() or path.suffix in WEIGHTS_SUFFIXES or is_index(path):
        return _from_weights(path, choices)
    if is_factory(text):
        return _from_code(text.rpartition(":")[2], text, choices)
    raise UsageError(
        f"'{text}' is not a file; a target is a card, a weights file, a folder, robustbench:ID, "
        "timm:ID, torchvision:ID, module:factory or file.py:factory"
    )


def load(target: Target, *, classes: int, shape: tuple[int, int, int]) -> Subject:
    """Builds and strictly loads a target for `classes` and images of `shape` (c, h, w)."""
    return _load(target, classes, shape, {})


def assemble(network: nn.Module, normalisation: Normalisation | None) -> nn.Module:
    """Returns a plain classifier, with the normalisation inside."""
    statistics = {}
    if normalisation:
        statistics = {"mean": normalisation.mean, "std": normalisation.std}
    defence = build_family("classifier", [network], statistics)
    defence.training = network.training  # a new module is in training mode, whatever it wraps
    return defence


# From a description to a network.


def _load(
    target: Target,
    classes: int,
    shape: tuple[int, int, int],
    loaded: dict[tuple[str, str], Subject],
) -> Subject:
    """Loads a target; a part that occurs several times is loaded once and stays one network."""
    if target.parts:
        _check_data(target, classes, shape)
        parts = [_load(part, classes, shape, loaded) for part in target.parts]
        return compose(target, parts, classes=classes, shape=shape)

    key = (target.name, str(target.weights))
    if key not in loaded:
        loaded[key] = _load_classifier(target, classes, shape)
    return loaded[key]


def _load_classifier(target: Target, classes: int, shape: tuple[int, int, int]) -> Subject:
    _check_data(target, classes, shape)
    network, carried = _network(target, classes, shape)
    notes: list[str] = []
    if target.weights:
        found = _found_weights(target, target.weights)
        more = classes_in(found, network) if _takes_classes(target) else 0
        if more > classes:
            network, _ = _network(target, more, shape)
            notes.append(f"took {more:,} classes from the file; the data set has {classes:,}")
        carried, remarks = _load_weights(found, network, classes, shape)
        notes += remarks
        network.eval()  # a newly built network says nothing about the mode that its author wants
    normalisation = _one_normalisation(target, carried, shape[0])

    return Subject(
        name=target.name,
        family=target.family,
        model=assemble(network, normalisation),
        network=network,
        architecture=_spelled(target.architecture, target.arguments),
        normalisation=normalisation,
        checkpoint_sha256=_weights_digest(target, network),
        code_sha256=_code_digest(target.architecture),
        notes=tuple(notes),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


def _network(
    target: Target, classes: int, shape: tuple[int, int, int]
) -> tuple[nn.Module, Normalisation | None]:
    """Returns a published model with its normalisation, or a network with random weights."""
    library = _library(target.architecture)
    if library in ZOOS:
        return load_from_zoo(library, target.architecture.partition(":")[2])
    network = build_network(
        target.architecture,
        target.arguments,
        classes=classes,
        shape=shape,
        most=parameters_for(target.weights),
    )
    return network, None


def _library(text: str) -> str:
    return text.partition(":")[0]


def _code_digest(architecture: str) -> str:
    """Returns the sha256 of a person's own code; a library is named by its version."""
    return "" if _library(architecture) in ZOOS else code_digest(architecture)


def _check_data(target: Target, classes: int, shape: tuple[int, int, int]) -> None:
    if target.card is None:
        return
    if target.card.classes < classes:
        raise UsageError(
            f"'{target.name}' has {target.card.classes} classes, the data set has "
            f"{classes}: choose another --dataset"
        )
    channels = target.card.image_shape[0]
    if channels != shape[0]:
        raise UsageError(
            f"'{target.name}' takes images of {channels} channels, the data set has {shape[0]}: "
            "choose another --dataset"
        )


def _takes_classes(target: Target) -> bool:
    """Tells whether the number of classes is free: a factory, a card or a person may fix it."""
    return not is_factory(target.architecture) and "classes" not in target.arguments


def _found_weights(target: Target, weights: Path) -> Found:
    if target.sha256 and sha256(weights) != target.sha256:
        raise CheckpointError(
            f"'{weights}' is not the file its card describes: the sha256 differs; fetch it again"
        )
    content, notes = read_weights(weights)
    found = find_state(content, target.weights_key, source=weights.name)
    return replace(found, notes=(*notes, *found.notes))


def _load_weights(
    found: Found, network: nn.Module, classes: int, shape: tuple[int, int, int]
) -> tuple[Normalisation | None, list[str]]:
    hint = ""
    if fit(found.state, network.state_dict()) < 0.5:
        hint = nearest_architecture(found.state, classes=classes, shape=shape)
    return load_state(network, found, hint=hint)


def _one_normalisation(
    target: Target, carried: Normalisation | None, channels: int
) -> Normalisation | None:
    # Compared as they are written: a file carries 0.4914 as the nearest float32.
    if target.normalisation and carried and str(target.normalisation) != str(carried):
        raise CheckpointError(
            f"'{target.name}' would be normalised twice: the checkpoint carries {carried}, and "
            f"{target.normalisation} was asked for; leave out --normalisation"
        )
    chosen = target.normalisation or carried
    if chosen and len(chosen.mean) not in {1, channels}:
        raise UsageError(
            f"'{target.name}' is normalised by {chosen} for images of {len(chosen.mean)} channels, "
            f"the data set has {channels}: choose another --dataset or --normalisation"
        )
    return chosen


def _spelled(architecture: str, arguments: Arguments) -> str:
    """Returns an architecture with its arguments, as records name it."""
    file, separator, attribute = architecture.rpartition(":")
    name = architecture
    if file.endswith(".py"):
        # A folder would tie the result to one machine. The identity has the sha256 of the code.
        name = Path(file).name + separator + attribute
    return " ".join([name, *pairs(dict(sorted(arguments.items())))])


def _weights_digest(target: Target, network: nn.Module) -> str:
    """Returns the sha256 of the weights file, or that of the tensors where there is no file."""
    if target.weights:
        return sha256(target.weights)
    with guarded("the weights of the network cannot be read"):
        return _state_digest(network.state_dict())


def _state_digest(state: Mapping[str, object]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        if not isinstance(value, Tensor):
            continue  # extra state: the identity has the sha256 of its code
        digest.update(value.detach().cpu().contiguous().flatten().float().numpy().tobytes())
    return digest.hexdigest()


# From a name to a description.


def _from_folder(folder: Path, choices: Choices) -> list[Target]:
    targets: list[Target] = []
    for file in targets_in(folder):
        targets += describe(str(file), choices)
    return targets


def _from_card(path: Path, choices: Choices) -> Target:
    card = read_card(path)
    if card.parts and (choices.architecture or choices.normalisation):
        raise UsageError(f"'{card.name}' is made of parts: leave out --arch and --normalisation")
    return _named(target_of_card(path, card, choices), choices)


def _from_code(name: str, text: str, choices: Choices) -> Target:
    if choices.architecture:
        raise UsageError(
            f"'{text}' names its network itself: leave out --arch {choices.architecture}"
        )
    return _named(Target(name, text, {}), choices)


def _from_weights(path: Path, choices: Choices) -> Target:
    if not path.is_file():
        raise CheckpointError(f"there is no file '{path}'")
    if choices.architecture:
        return _named(Target(name_of(path), choices.architecture, {}, weights=path), choices)

    card = path.with_suffix(".toml")
    described = weights_of(card) if card.is_file() else ""
    if described == path.name:
        return _from_card(card, choices)
    neighbour = f"; its neighbour '{card.name}' describes '{described}'" if described else ""
    raise MissingError(
        f"which network is '{path}'? Give --arch NAME ('rkd list' shows them) or "
        f"--arch file.py:factory{neighbour}"
    )


def _named(target: Target, choices: Choices) -> Target:
    """Returns the target with the choices of the user in place of its description."""
    chosen = replace(target, name=choices.name or target.name, weights_key=choices.weights_key)
    if choices.normalisation:
        normalisation = parse_normalisation(choices.normalisation)
        chosen = replace(chosen, normalisation=normalisation)
    if choices.architecture:
        chosen = replace(chosen, architecture=choices.architecture, arguments={})
    return replace(chosen, arguments={**chosen.arguments, **choices.arguments})
