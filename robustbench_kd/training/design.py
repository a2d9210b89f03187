"""What is to be trained: a network, or a defence that is composed of parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from robustbench_kd.checkpoints.architecture import build_network
from robustbench_kd.checkpoints.card import Architecture, Arguments, Normalisation, Weights
from robustbench_kd.checkpoints.composite import build_family, own_state
from robustbench_kd.checkpoints.convert import write_weights
from robustbench_kd.checkpoints.subject import Choices, Target
from robustbench_kd.checkpoints.target import assemble, describe, load
from robustbench_kd.core.errors import UsageError
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.training.loop import seeded_build

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Network:
    """A network with its normalisation inside."""

    architecture: Architecture
    normalisation: Normalisation | None = None

    def build(self, data: Dataset, seed: int, card: Path) -> nn.Module:
        """Returns the network with random weights that follow from the seed."""
        name, arguments = self.architecture.name, self.architecture.arguments
        shape = shape_of(data)
        network = seeded_build(
            lambda: build_network(name, arguments, classes=data.classes, shape=shape), seed
        )
        return assemble(network, self.normalisation)

    def described(self) -> dict[str, object]:
        """Returns the fields of the card that say what it is."""
        return {"architecture": self.architecture, "normalisation": self.normalisation}

    def write(self, model: nn.Module, card: Path) -> Weights:
        """Writes the weights beside the card; its normalisation has none."""
        network = model.get_submodule("network") if self.normalisation else model
        return write_weights(network, card.parent, card.stem)


@dataclass(frozen=True)
class Composition:
    """A defence of a family around frozen parts, each described by a card in its own folder."""

    family: str
    parts: tuple[Path, ...]
    arguments: Arguments
    trust_code: bool = False

    def build(self, data: Dataset, seed: int, card: Path) -> nn.Module:
        """Returns the defence with its parts loaded and frozen.

        Random weights of its own follow from the seed. Raises `UsageError` where the card could not
        describe it, and like `checkpoints.target.load`.
        """
        if self.family == "classifier":
            raise UsageError(
                "expected a family that is composed of parts, got 'classifier': choose another "
                "--family"
            )
        targets = [self._target(part, card) for part in self.parts]
        shape = shape_of(data)
        loaded = seeded_build(
            lambda: [load(target, classes=data.classes, shape=shape) for target in targets], seed
        )
        models = [part.model.requires_grad_(False) for part in loaded]
        return seeded_build(
            lambda: build_family(
                self.family, models, self.arguments, classes=data.classes, shape=shape
            ),
            seed,
        )

    def described(self) -> dict[str, object]:
        """Returns the fields of the card that say what it is."""
        return {
            "family": self.family,
            "parts": tuple(part.name for part in self.parts),
            "arguments": self.arguments,
        }

    def write(self, model: nn.Module, card: Path) -> Weights | None:
        """Writes the tensors that are not the parts' beside the card, if there are any.

        Takes the parts out of the model.
        """
        if not own_state(model):
            return None
        del model.parts
        return write_weights(model, card.parent, card.stem)

    def _target(self, part: Path, card: Path) -> Target:
        if part.suffix != ".toml" or part.is_dir():
            raise UsageError(
                f"expected the card of a part, such as net.toml, got '{part}'; 'rkd convert' "
                "writes one"
            )
        (target,) = describe(str(part), Choices(trust_code=self.trust_code))
        if part.parent.resolve() != card.parent.resolve():
            raise UsageError(
                f"expected the parts in the folder of the new card, '{card.parent}', got '{part}': "
                "copy its card and "
                f"weights there, or choose --out {part.parent}"
            )
        if card.stem in {part.stem, *_files(target)}:
            raise UsageError(
                f"'{card.stem}' would overwrite a file of its part '{part}': choose another --name"
            )
        return target


def shape_of(data: Dataset) -> Shape:
    """Returns channels, height and width of the images."""
    channels, height, width = data.images.shape[1:]
    return channels, height, width


def _files(target: Target) -> Iterator[str]:
    """Yields the stems of all files that a target is read from, but for its own card's."""
    if target.weights:
        yield target.weights.stem
    for name, part in zip(target.card.parts if target.card else (), target.parts, strict=True):
        yield Path(name).stem
        yield from _files(part)
