"""Cards: the TOML description of a checkpoint that lies beside its weights."""

import math
import re
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from robustbench_kd.core.errors import CheckpointError, UsageError, unknown_name
from robustbench_kd.core.files import write_text
from robustbench_kd.core.received import MOST_CLASSES, read_toml
from robustbench_kd.core.records import Frozen, Name
from robustbench_kd.core.text import shortened
from robustbench_kd.core.threat import Threat

MOST_PARTS = 256  # of a defence, those of its parts included
_MOST_CHANNELS = 64
_LONGEST_NAME = 200
_LONGEST_FILE_NAME = 255  # bytes, that file systems take
_MOST_PIXELS = 2**26  # numbers in an image

Argument = bool | int | float | str
Arguments = dict[str, Argument | list[Argument]]


class Architecture(Frozen):
    """A name of `models/`, or `module:factory` and `file.py:factory`, with its arguments."""

    name: str
    arguments: Arguments = Field(default_factory=dict)


class Normalisation(Frozen):
    """Per-channel mean and standard deviation of images in [0, 1], applied inside the model."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _can_divide(self) -> "Normalisation":
        means, deviations = len(self.mean), len(self.std)
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        fits = 0 < means == deviations <= _MOST_CHANNELS
        if not fits or not finite or min(self.std) <= 0:
            raise ValueError(
                f"expected as many positive deviations as means, at most {_MOST_CHANNELS}, got "
                f"{shortened(str(self), most=60)}"
            )
        return self

    def __str__(self) -> str:
        return f"{_separated(self.mean)}/{_separated(self.std)}"


class Weights(Frozen):
    """The weights file beside the card, by name alone, and its sha256."""

    file: str
    sha256: str

    @field_validator("file")
    @classmethod
    def _beside_the_card(cls, file: str) -> str:
        if not is_file_name(file):
            raise ValueError(f"expected the name of a file beside the card, got {file!r}")
        return file

    @field_validator("sha256")
    @classmethod
    def _is_sha256(cls, sha256: str) -> str:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(
                f"expected the 64 hexadecimal digits that sha256sum prints, got {sha256!r}"
            )
        return sha256


class Teacher(Frozen):
    """A network that the checkpoint was distilled from: its name, its weights, and its card."""

    name: str
    sha256: str
    card: str = ""

    @field_validator("card")
    @classmethod
    def _beside_the_card(cls, card: str) -> str:
        if card and not is_file_name(card):
            raise ValueError(f"expected the name of a card, such as net.toml, got {card!r}")
        return card


class ClaimedNumber(Frozen):
    """A published number with its source."""

    metric: str
    value: float
    source: str
    threat: str = ""


class Card(Frozen):
    """What a checkpoint is, what it was trained on, and how it was made.

    A plain classifier has an architecture and weights. Any other family is composed of `parts`,
    cards beside its own, with `arguments` and perhaps weights of its own. `class_names` are in the
    order of the outputs.
    """

    name: Name = Field(min_length=1, max_length=_LONGEST_NAME)
    family: str = "classifier"
    classes: int = Field(ge=2, le=MOST_CLASSES)
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    dataset: str
    threats: tuple[str, ...] = ()
    licence: str = ""
    architecture: Architecture | None = None
    normalisation: Normalisation | None = None
    parts: tuple[str, ...] = Field(default=(), max_length=MOST_PARTS)
    arguments: Arguments = Field(default_factory=dict)
    weights: Weights | None = None
    teachers: tuple[Teacher, ...] = ()
    class_names: tuple[str, ...] = ()
    made: dict[str, Any] = Field(default_factory=dict)
    claims: tuple[ClaimedNumber, ...] = ()

    @field_validator("image_shape")
    @classmethod
    def _can_be_held(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if math.prod(shape) > _MOST_PIXELS:
            raise ValueError(f"expected at most {_MOST_PIXELS:,} numbers in an image")
        return shape

    @field_validator("parts")
    @classmethod
    def _beside_the_card(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        for part in parts:
            if not is_file_name(part) or not part.endswith(".toml"):
                raise ValueError(
                    f"expected the names of cards beside the card, such as net.toml, got {part!r}"
                )
        return parts

    @model_validator(mode="after")
    def _each_class_has_a_name(self) -> "Card":
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(
                f"expected {self.classes} class_names, one for each class, "
                f"got {len(self.class_names)}"
            )
        return self

    @model_validator(mode="after")
    def _complete(self) -> "Card":
        if self.family != "classifier" and not self.parts:
            raise ValueError(
                f"expected 'parts', the cards that a {self.family} is made of, got none"
            )
        if self.family == "classifier" and (
            self.parts or not self.architecture or not self.weights
        ):
            raise ValueError(
                "expected 'architecture' and 'weights', and no 'parts', for a plain classifier"
            )
        if self.parts and (self.architecture or self.normalisation):
            raise ValueError(
                f"expected no architecture and no normalisation for a {self.family}: "
                "its parts have them"
            )
        return self

    @field_validator("threats")
    @classmethod
    def _threats_parse(cls, threats: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for threat in threats:
                Threat.parse(threat)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return threats


_SECTIONS: dict[str, type[Frozen]] = {
    "architecture": Architecture,
    "normalisation": Normalisation,
    "weights": Weights,
    "teachers": Teacher,
    "claims": ClaimedNumber,
}


def is_file_name(text: str) -> bool:
    """Tells whether a text names a file inside a folder, on any system."""
    if len(text.encode(errors="replace")) > _LONGEST_FILE_NAME:
        return False
    return text.isprintable() and text not in {"", ".", ".."} and not set(text) & {"/", "\\"}


def read_card(path: Path) -> Card:
    """Reads a card; raises `CheckpointError` that names the file, the field and the problem."""
    try:
        return Card.model_validate(read_toml(path, "card", CheckpointError))
    except ValidationError as error:
        raise CheckpointError(f"card '{path}': {_first_problem(error.errors()[0])}") from error


def write_card(card: Card, path: Path) -> None:
    """Writes a card that `read_card` reads back equal.

    `made` holds only what TOML can express: no None and no tuple.
    """
    write_text(path, tomli_w.dumps(card.model_dump(exclude_defaults=True)))


def _separated(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _first_problem(problem: ErrorDetails) -> str:
    """Returns the wrong field and the reason; for an unknown field also the nearest known one."""
    path = [str(part) for part in problem["loc"]]
    if problem["type"] != "extra_forbidden":
        return f"field '{'.'.join(path)}': {problem['msg'].removeprefix('Value error, ')}"
    *holders, name = path
    if not holders:
        return str(unknown_name("field", name, Card.model_fields))
    section = _SECTIONS[holders[0]]
    return str(unknown_name(f"field of {'.'.join(holders)}", name, section.model_fields))
