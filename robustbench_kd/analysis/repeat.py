"""The command that repeats a run, as far as its record knows it."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustbench_kd.core.records import Identity

CHECKPOINT = "CHECKPOINT"

_ZOOS = ("robustbench:", "timm:", "torchvision:")


@dataclass(frozen=True)
class Repetition:
    """A command line, part by part, and what a person has to fill in."""

    command: tuple[str, ...]
    hint: str


def repetition(identity: Identity) -> Repetition:
    """Returns the `rkd eval` that asks the same question.

    A record tells no paths: where the model is no library's, the command names it CHECKPOINT.
    """
    target = identity.architecture if identity.architecture.startswith(_ZOOS) else CHECKPOINT
    return Repetition(_command(target, identity), " ".join(_hints(target, identity)))


def _hints(target: str, identity: Identity) -> Iterator[str]:
    if target == CHECKPOINT:
        network, *arguments = identity.architecture.split(" ")
        parts = [("--arch", network), *(("--arch-arg", one) for one in arguments)]
        without_card = _joined([*parts, ("--normalisation", identity.normalisation)])
        yield (
            f"{CHECKPOINT} is the card of the weights with sha256 {identity.checkpoint_sha256[:16]}..., or that file "
            f"itself with {' '.join(without_card)}."
        )
    if "adaptive" in identity.suite:
        yield "Add the --surrogate and --adaptive of the run, if it had any."
    if identity.carried:
        curve = f"{identity.norm}:SMALLER,{identity.eps_text}"
        yield f"What run {identity.carried} broke at a smaller radius counts as broken: give both, as --threat {curve}."


def _command(target: str, identity: Identity) -> tuple[str, ...]:
    options = [
        ("--name", identity.model),
        ("--dataset", identity.dataset),
        ("--examples", str(identity.examples)),
        ("--threat", f"{identity.norm}:{identity.eps_text}"),
        ("--suite", identity.suite),
        ("--engine", identity.engine),
        ("--seed", str(identity.seed)),
        ("--device", identity.device),
    ]
    if identity.batch_size:  # 0 where verdicts do not depend on it
        options.append(("--batch-size", str(identity.batch_size)))
    return f"rkd eval {shlex.quote(target)}", *_joined(
        [*options, *_mode(identity), *_levers(identity)]
    )


def _mode(identity: Identity) -> list[tuple[str, ...]]:
    """Returns the options of a run that did not go through all examples with the whole budget."""
    how, _, claim = identity.mode.partition(" ")
    if how == "until":
        return [("--until-decided", claim)]
    return [] if how == "exact" else [("--mode", how)]


def _levers(identity: Identity) -> list[tuple[str, ...]]:
    """Returns the options of a search that was not asked as by default."""
    precision, *speedups = identity.precision.split("+")
    changed = [("--precision", precision)] if precision != "fp32" else []
    unfolded = [("--no-fold",)] if identity.engine == "native" and "fold" not in speedups else []
    return [*changed, *unfolded, *((f"--{lever}",) for lever in speedups if lever != "fold")]


def _joined(options: Sequence[tuple[str, ...]]) -> list[str]:
    return [shlex.join(option) for option in options]
