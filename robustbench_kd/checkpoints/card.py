"""Cards: the TOML description of a checkpoint that lies beside its weights."""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, ValidationError, field_validator

from robustbench_kd.core.errors import CheckpointError
from robustbench_kd.core.records import Frozen
from robustbench_kd.core.rundir import write_text
from robustbench_kd.core.threat import Threat

Argument = bool | int | float | str


class Architecture(Frozen):
    """A name of `models/`, or `module:factory` and `file.py:factory`, with its arguments."""

    name: str
    arguments: dict[str, Argument] = Field(default_factory=dict)


class Normalisation(Frozen):
    """Per-channel mean and standard deviation of images in [0, 1], applied inside the model."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return ",".join(f"{value:g}" for value in self.mean) + "/" + ",".join(f"{value:g}" for value in self.std)


class Weights(Frozen):
    """The weights file beside the card, by name alone, and its sha256."""

    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @field_validator("file")
    @classmethod
    def _beside_the_card(cls, file: str) -> str:
        if Path(file).name != file:
            raise ValueError(f"expected the name of a file beside the card, got '{file}'")
        return file


class Claim(Frozen):
    """A number that somebody published, with where it stands."""

    metric: str
    value: float
    source: str
    threat: str = ""


class Card(Frozen):
    """What a checkpoint is, what it was trained on, and how it was made."""

    name: str = Field(min_length=1)
    family: str = "classifier"
    classes: int = Field(ge=2)
    image_shape: tuple[int, int, int]
    dataset: str
    threats: tuple[str, ...] = ()
    licence: str = ""
    architecture: Architecture
    normalisation: Normalisation | None = None
    weights: Weights
    made: dict[str, Any] = Field(default_factory=dict)
    claims: tuple[Claim, ...] = ()

    @field_validator("threats")
    @classmethod
    def _threats_parse(cls, threats: tuple[str, ...]) -> tuple[str, ...]:
        for threat in threats:
            Threat.parse(threat)
        return threats


def read_card(path: Path) -> Card:
    """Reads a card; raises `CheckpointError` that names the file, the field and what was wrong with it."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return Card.model_validate(content)
    except OSError as error:
        raise CheckpointError(f"cannot read card '{path}': {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"card '{path}' is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"card '{path}': field '{field}': {first['msg']}") from error


def write_card(card: Card, path: Path) -> None:
    """Writes a card that `read_card` reads back equal."""
    write_text(path, tomli_w.dumps(card.model_dump(mode="json", exclude_defaults=True)))
