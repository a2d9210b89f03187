"""What comes to the adaptive attacks from outside: stand-in models, a student's teachers, attacks of a person's own."""

from collections.abc import Sequence
from pathlib import Path

import torch

from robustbench_kd.checkpoints.architecture import code_digest, find_code, is_factory
from robustbench_kd.checkpoints.subject import Choices, Target
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.cli import _console
from robustbench_kd.core.errors import UsageError
from robustbench_kd.engine.run.request import Extra
from robustbench_kd.tensors.oracle import freeze


def described(texts: Sequence[str], *, trust_code: bool) -> list[Target]:
    """Reads `--surrogate` targets; what they are called in the record is told apart by their weights."""
    return [target for text in texts for target in describe(text, Choices(trust_code=trust_code))]


def teachers(student: Target, *, trust_code: bool) -> list[Target]:
    """Describes the teachers whose cards lie beside a student's; says which ones it was distilled from do not."""
    if student.card is None or student.weights is None:
        return []
    found: list[Target] = []
    for teacher in student.card.teachers:
        path = student.weights.parent / teacher.card
        beside = describe(str(path), Choices(trust_code=trust_code)) if path.is_file() else []
        same = [target for target in beside if target.parts or target.sha256 == teacher.sha256]
        if not same:
            _console.say(
                f"{student.name}: its teacher '{teacher.name}' is not beside its card, and not attacked",
                "dim",
            )
        found += same
    return found


def added(
    surrogates: Sequence[Target],
    attacks: Sequence[str],
    *,
    classes: int,
    shape: tuple[int, int, int],
    device: torch.device,
) -> Extra:
    """Loads stand-in models and finds attacks; raises `UsageError` for what is no `FILE.py:ATTACK`."""
    models = {}
    for target in surrogates:
        subject = load(target, classes=classes, shape=shape)
        freeze(subject.model)
        models[f"{subject.name}@{subject.checkpoint_sha256[:8]}"] = subject.model.to(device)
    found = {}
    for text in attacks:
        if not is_factory(text):
            raise UsageError(f"expected --adaptive FILE.py:ATTACK or module:ATTACK, got '{text}'")
        place, _, attribute = text.rpartition(":")
        found[f"{Path(place).name}:{attribute}@{code_digest(text)[:8]}"] = find_code(text)
    return Extra(models, found)
