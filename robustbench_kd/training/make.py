"""From a recipe to a checkpoint: builds, trains, and describes everything needed to repeat it."""

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from robustbench_kd.checkpoints.card import Card, is_file_name, read_card, write_card
from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors import hashed_file
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.training import distributed
from robustbench_kd.training.design import Composition, Network, shape_of
from robustbench_kd.training.events import Observer, Trained
from robustbench_kd.training.loop import train
from robustbench_kd.training.recipe import Recipe
from robustbench_kd.training.teachers import TeacherSpec, archive, described, load_teachers
from robustbench_kd.training.training_checkpoint import TrainingCheckpoint
from robustbench_kd.training.training_state import Partners

_MOST_SEEDS = 2**63
# What a card says of how its weights were made.
_SETTINGS = ("method", "threat", "data_fingerprint", "recipe")


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
    teachers: tuple[TeacherSpec, ...] = ()


@dataclass(frozen=True)
class Made:
    """A written checkpoint: its card's path, and how the training went."""

    path: Path
    trained: Trained


def make_checkpoint(plan: Plan, data: Dataset, folder: Path, observer: Observer) -> Made:
    """Trains by the plan on the training split `data`, and writes a card and weights to a folder.

    Until the card is written, a file `NAME.training` is beside it: the same plan resumes from it
    after the last finished epoch. The first of several processes of torchrun writes. Raises
    `UsageError` for a name that cannot be a file name, or for an existing checkpoint that was made
    with other settings, and what building and training raise.
    """
    if not plan.name or not is_file_name(plan.name):
        raise UsageError(f"expected a name that can be a file name, got {plan.name!r}")
    path = folder / f"{plan.name}.toml"
    teachers = load_teachers(plan.teachers, plan.recipe, data, path)
    model = plan.design.build(data, plan.recipe.seed, path)
    told = {**plan.design.described(), "teachers": tuple(map(described, plan.teachers, teachers))}
    if path.exists():
        _require_same(path, _conditions(plan, data), told)
    memory = TrainingCheckpoint(
        path.with_suffix(".training"), _identity(plan, data, model, teachers)
    )
    partners = _partners(plan, data, path, teachers)
    trained = train(
        model.to(plan.device),
        data,
        plan.threat,
        plan.recipe,
        observer,
        partners=partners,
        memory=memory,
    )
    if not distributed.leads():
        return Made(path, trained)
    model.load_state_dict(trained.best_state)
    fields = {
        "name": plan.name,
        "classes": data.classes,
        "image_shape": shape_of(data),
        "dataset": data.name,
        "threats": plan.threats,
        "licence": plan.licence,
        "weights": plan.design.write(model, path),
        "made": _history(plan, data, trained),
    }
    write_card(Card.model_validate({**fields, **told}), path)
    memory.forget()
    return Made(path, trained)


def _require_same(path: Path, conditions: dict[str, object], told: dict[str, object]) -> None:
    """Raises `UsageError` where the checkpoint of a name was made with other settings.

    Overwriting it would lose a training that may have taken days.
    """
    card = read_card(path)
    differing = [key for key in _SETTINGS if card.made.get(key) != conditions[key]]
    differing += [field for field, value in told.items() if getattr(card, field) != value]
    if differing:
        raise UsageError(
            f"'{path}' was made with other {' and '.join(differing)}, and would be lost: choose "
            "another --name, or delete it first"
        )


def _partners(plan: Plan, data: Dataset, path: Path, teachers: Sequence[Subject]) -> Partners:
    recipe = plan.recipe
    # A peer with the student's own weights could teach it nothing.
    peer_seed = (recipe.seed + 1) % _MOST_SEEDS
    stored = None
    if recipe.stored_views:
        stored = archive(teachers, recipe, data, path.parent, plan.device)
    return Partners(
        teachers=tuple(teacher.model.to(plan.device) for teacher in teachers),
        archive=stored,
        fresh=lambda: plan.design.build(data, peer_seed, path),
    )


def _conditions(plan: Plan, data: Dataset) -> dict[str, object]:
    """Returns everything that decides the course of a training, except the networks."""
    conditions: dict[str, object] = {}
    if distributed.processes() > 1:
        conditions["processes"] = distributed.processes()
    conditions["method"] = plan.recipe.method if plan.recipe.epochs else "fit"
    conditions["threat"] = str(plan.threat)
    conditions["data_fingerprint"] = data.fingerprint()
    conditions["recipe"] = plan.recipe.model_dump(mode="json", exclude_none=True)
    conditions["versions"] = {
        "robustbench-kd": importlib.metadata.version("robustbench-kd"),
        "torch": importlib.metadata.version("torch"),
    }
    return conditions


def _identity(plan: Plan, data: Dataset, model: nn.Module, teachers: Sequence[Subject]) -> str:
    """Returns the sha256 of everything that a training begins with."""
    known = {
        **_conditions(plan, data),
        "teachers": [teacher.checkpoint_sha256 for teacher in teachers],
    }
    return hashed_file.digest(model.state_dict(), {"conditions": json.dumps(known, sort_keys=True)})


def _history(plan: Plan, data: Dataset, trained: Trained) -> dict[str, object]:
    """Returns what a card says of how it was made.

    Validation examples are held out of the training split.
    """
    known = _conditions(plan, data)
    validation = {"n": plan.recipe.validation, **_measured(trained)}
    outcome = {
        "epoch": trained.best_epoch,
        "data_fingerprint": known.pop("data_fingerprint"),
        "validation": validation,
    }
    return {"method": known.pop("method"), "threat": known.pop("threat"), **outcome, **known}


def _measured(trained: Trained) -> dict[str, object]:
    """Returns the accuracies of the selected weights; a randomized defence had one draw."""
    clean, robust = trained.validation
    if robust is None:
        return {"draws": 1, "clean_accuracy": clean}
    return {"clean_accuracy": clean, "pgd_accuracy": robust}
