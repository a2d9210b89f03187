"""What a person adds to adaptive attacks: surrogates, a student's teachers, own attacks."""

from collections.abc import Sequence
from pathlib import Path

import torch

from robustbench_kd.checkpoints.imports import code_digest, find_code, is_factory
from robustbench_kd.checkpoints.subject import Choices, Target
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.cli import _console
from robustbench_kd.core.errors import UsageError
from robustbench_kd.engine.run.request import Extra
from robustbench_kd.tensors.oracle import freeze


def described(texts: Sequence[str], *, trust_code: bool) -> list[Target]:
    """Reads `--surrogate` targets; in the record their names contain a part of their hash."""
    targets: list[Target] = []
    for text in texts:
        targets += describe(text, Choices(trust_code=trust_code))
    return targets


def teachers(student: Target, *, trust_code: bool) -> list[Target]:
    """Describes the teachers whose cards lie beside a student's, and names missing ones."""
    if student.card is None or student.weights is None:
        return []

    targets: list[Target] = []
    for teacher in student.card.teachers:
        path = student.weights.parent / teacher.card
        described = describe(str(path), Choices(trust_code=trust_code)) if path.is_file() else []
        same = [target for target in described if target.parts or target.sha256 == teacher.sha256]
        targets += same
        if not same:
            _console.say(
                f"{student.name}: its teacher '{teacher.name}' is not beside its card, and not "
                "attacked",
                "dim",
            )
    return targets


def added(
    surrogates: Sequence[Target],
    attacks: Sequence[str],
    *,
    classes: int,
    shape: tuple[int, int, int],
    device: torch.device,
) -> Extra:
    """Loads surrogates and finds attacks; raises `UsageError` for a text of another form."""
    models = {}
    for target in surrogates:
        subject = load(target, classes=classes, shape=shape)
        freeze(subject.model)
        models[f"{subject.name}@{subject.checkpoint_sha256[:8]}"] = subject.model.to(device)
    adversaries = {}
    for text in attacks:
        if not is_factory(text):
            raise UsageError(f"expected --adaptive FILE.py:ATTACK or module:ATTACK, got '{text}'")
        place, _, attribute = text.rpartition(":")
        name = f"{Path(place).name}:{attribute}@{code_digest(text)[:8]}"
        adversaries[name] = find_code(text)
    return Extra(models, adversaries)
