"""From a recipe to a checkpoint: builds, trains, and describes everything needed to repeat it."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustbench_kd.checkpoints.card import Card, is_file_name, write_card
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.training.design import Composition, Network, shape_of
from robustbench_kd.training.loop import Observer, Trained, train
from robustbench_kd.training.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What is to be trained; `threats` are those of the card, `threat` the one trained against."""

    name: str
    recipe: Recipe
    design: Network | Composition
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
    """Trains by the plan on the training split `data` and writes a card into a folder, with the weights beside it.

    Raises `UsageError` for a name that is no file name, and whatever building and training raise.
    """
    if not plan.name or not is_file_name(plan.name):
        raise UsageError(f"expected a name that can be a file name, got {plan.name!r}")
    path = folder / f"{plan.name}.toml"
    model = plan.design.build(data, plan.recipe.seed, path).to(plan.device)
    trained = train(model, data, plan.threat, plan.recipe, observer)
    model.load_state_dict(trained.best_state)
    card = Card(
        name=plan.name,
        classes=data.classes,
        image_shape=shape_of(data),
        dataset=data.name,
        threats=plan.threats,
        licence=plan.licence,
        weights=plan.design.write(model, path),
        made=_history(plan, data, trained),
        **plan.design.described(),
    )
    write_card(card, path)
    return Made(path, trained)


def _history(plan: Plan, data: Dataset, trained: Trained) -> dict[str, object]:
    """Returns what a card says of how it was made; validation examples are held out of the training split."""
    return {
        "method": plan.recipe.method if plan.recipe.epochs else "fit",
        "threat": str(plan.threat),
        "epoch": trained.best_epoch,
        "data_fingerprint": data.fingerprint(),
        "validation": {"n": plan.recipe.validation, **_measured(trained)},
        "recipe": plan.recipe.model_dump(mode="json", exclude_none=True),
        "versions": {
            "robustbench-kd": importlib.metadata.version("robustbench-kd"),
            "torch": importlib.metadata.version("torch"),
        },
    }


def _measured(trained: Trained) -> dict[str, Any]:
    """Returns the accuracies of the selected weights; those of one draw of each image for a randomized defence."""
    clean, robust = trained.validation
    if robust is None:
        return {"draws": 1, "clean_accuracy": clean}
    return {"clean_accuracy": clean, "pgd_accuracy": robust}
