"""From a recipe to a checkpoint: builds, trains, and describes everything needed to repeat it."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import torch

from robustbench_kd.checkpoints.architecture import build_network
from robustbench_kd.checkpoints.card import Architecture, Card, Normalisation, write_card
from robustbench_kd.checkpoints.convert import write_weights
from robustbench_kd.checkpoints.target import assemble
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.training.loop import Observer, Trained, seeded_build, train
from robustbench_kd.training.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What is to be trained; `threats` are those of the card, `threat` the one trained against."""

    name: str
    recipe: Recipe
    architecture: Architecture
    normalisation: Normalisation | None
    threat: Threat
    threats: tuple[str, ...]
    device: torch.device
    licence: str = ""


@dataclass(frozen=True)
class Made:
    """A written checkpoint: its card's path, and how the training went."""

    path: Path
    trained: Trained


def make_checkpoint(plan: Plan, data: Dataset, folder: Path, observer: Observer) -> Made:
    """Trains by the plan on the training split `data` and writes weights and card into a folder."""
    channels, height, width = data.images.shape[1:]
    shape = (channels, height, width)
    name, arguments = plan.architecture.name, plan.architecture.arguments
    network = seeded_build(lambda: build_network(name, arguments, classes=data.classes, shape=shape), plan.recipe.seed)
    model = assemble(network, plan.normalisation).to(plan.device)
    trained = train(model, data, plan.threat, plan.recipe, observer)
    model.load_state_dict(trained.best_state)
    card = Card(
        name=plan.name,
        classes=data.classes,
        image_shape=shape,
        dataset=data.name,
        threats=plan.threats,
        licence=plan.licence,
        architecture=plan.architecture,
        normalisation=plan.normalisation,
        weights=write_weights(network, folder, plan.name),
        made=_history(plan, data, trained),
    )
    path = folder / f"{plan.name}.toml"
    write_card(card, path)
    return Made(path, trained)


def _history(plan: Plan, data: Dataset, trained: Trained) -> dict[str, object]:
    """Returns what a card says of how it was made; validation examples are held out of the training split."""
    return {
        "method": plan.recipe.method,
        "threat": str(plan.threat),
        "epoch": trained.best_epoch,
        "data_fingerprint": data.fingerprint(),
        "validation": {
            "n": plan.recipe.validation,
            "clean_accuracy": trained.best.clean_accuracy,
            "pgd_accuracy": trained.best.robust_accuracy,
        },
        "recipe": plan.recipe.model_dump(mode="json", exclude_none=True),
        "versions": {
            "robustbench-kd": importlib.metadata.version("robustbench-kd"),
            "torch": importlib.metadata.version("torch"),
        },
    }
