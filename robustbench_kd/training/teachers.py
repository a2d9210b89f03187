"""Teachers: how they are named, loaded, and asked once for all images."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from robustbench_kd.checkpoints.card import Teacher
from robustbench_kd.checkpoints.subject import Choices, Subject, Target
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.errors import UsageError
from robustbench_kd.tensors import stored_logits
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.defence import is_randomized
from robustbench_kd.tensors.oracle import changes_argument, freeze, guarded
from robustbench_kd.tensors.stored_logits import Archive, Source, StoredLogits, Views
from robustbench_kd.training.recipe import Recipe

_FOLDER = "stored-logits"


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher that is not loaded yet, and the name of its card, if it has one."""

    target: Target
    card: str = ""


def describe_teacher(text: str, *, trust_code: bool = False) -> TeacherSpec:
    """Reads what names a teacher, a card or any other target.

    Raises like `checkpoints.target.describe`.
    """
    targets = describe(text, Choices(trust_code=trust_code))
    if len(targets) > 1:
        raise UsageError(f"'{text}' holds {len(targets)} checkpoints: name the one that teaches")
    return TeacherSpec(targets[0], Path(text).name if text.endswith(".toml") else "")


def load_teachers(
    tutors: Sequence[TeacherSpec], recipe: Recipe, data: Dataset, card: Path
) -> list[Subject]:
    """Loads as many teachers as the recipe's method has.

    Raises `UsageError` for any other number, for a teacher of other classes or a randomized
    one, and where the student's `card` would overwrite one.
    """
    wanted = recipe.opened().options.teachers()
    if len(tutors) != len(wanted):
        asked = f"{len(wanted)} ({', '.join(wanted)})" if wanted else "none"
        raise UsageError(
            f"expected as many teachers as '{recipe.method}' has, {asked}, got {len(tutors)}: give "
            "'rkd distill' a --teacher for each"
        )
    return [_load(tutor.target, data, card) for tutor in tutors]


def described(tutor: TeacherSpec, subject: Subject) -> Teacher:
    """Returns what a student's card says of a teacher."""
    return Teacher(name=subject.name, sha256=subject.checkpoint_sha256, card=tutor.card)


def archive(
    teachers: Sequence[Subject], recipe: Recipe, data: Dataset, folder: Path, device: torch.device
) -> Archive:
    """Returns the logits of teachers for the fixed views of a data set.

    They are read from a folder; the first call writes them there.
    """
    views = Views(count=recipe.stored_views or 1, padding=recipe.padding)
    ask = partial(
        stored_logits.ask, dataset=data, views=views, batch_size=recipe.batch_size, device=device
    )
    stored = [
        _stored(teacher, Source(teacher.checkpoint_sha256, data.fingerprint(), views), folder, ask)
        for teacher in teachers
    ]
    return Archive(views, tuple(stored))


def _stored(
    teacher: Subject, source: Source, folder: Path, ask: Callable[[nn.Module], StoredLogits]
) -> StoredLogits:
    path = (
        folder / _FOLDER / f"{hashlib.sha256(repr(source).encode()).hexdigest()[:16]}.safetensors"
    )
    if not path.exists():
        stored_logits.write(path, ask(teacher.model), source)
    return stored_logits.read(path, source)


def _load(target: Target, data: Dataset, card: Path) -> Subject:
    if (
        target.weights
        and target.weights.with_suffix("").resolve() == card.with_suffix("").resolve()
    ):
        raise UsageError(
            f"'{card.stem}' would overwrite its teacher: choose another --name or --out"
        )
    channels, height, width = data.images.shape[1:]
    subject = load(target, classes=data.classes, shape=(channels, height, width))
    if target.card and target.card.classes != data.classes:
        raise UsageError(
            f"teacher '{subject.name}' has {target.card.classes} classes, the data set has "
            f"{data.classes}: "
            "choose another --teacher or --dataset"
        )
    if is_randomized(subject.model):
        raise UsageError(
            f"teacher '{subject.name}' is randomized: choose one that always gives the same answer"
        )
    freeze(subject.model)
    with guarded(f"teacher '{subject.name}' cannot take images of the data set"):
        if changes_argument(subject.model, data.images[:2]):
            raise UsageError(
                f"teacher '{subject.name}' writes into the images that it is given, which the "
                "student sees: compute out of place (x = x - mean, not x.sub_(mean))"
            )
    return subject
