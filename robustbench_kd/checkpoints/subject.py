"""What the user says about a checkpoint, its description, and the loaded defence."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from robustbench_kd.checkpoints.card import Arguments, Card, Normalisation


@dataclass(frozen=True)
class Choices:
    """What the user says about a checkpoint on the command line; it overrides the card."""

    name: str = ""
    architecture: str = ""
    arguments: Arguments = field(default_factory=dict)
    normalisation: str = ""
    weights_key: str = ""
    trust_code: bool = False


@dataclass(frozen=True)
class Target:
    """A checkpoint that is described but not loaded; the data set fills empty fields.

    A composed defence has `parts` and no architecture. Its arguments are those of its family, and
    its weights do not include those of its parts. `text` names it alone, also where a folder was
    given.
    """

    name: str
    architecture: str
    arguments: Arguments
    normalisation: Normalisation | None = None
    weights: Path | None = None
    weights_key: str = ""
    sha256: str = ""
    family: str = "classifier"
    card: Card | None = None
    parts: tuple["Target", ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Subject:
    """A loaded defence with everything that identifies it; `notes` say what loading had to do.

    `model` maps images in [0, 1] to logits. `network` is the part of it that the weights file
    fills; for a composed defence it is the whole.
    """

    name: str
    family: str
    model: nn.Module
    network: nn.Module
    architecture: str
    normalisation: Normalisation | None
    checkpoint_sha256: str
    code_sha256: str
    notes: tuple[str, ...]
    parameters: int
