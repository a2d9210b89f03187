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

    A record holds no paths: the command says CHECKPOINT for a model that is not a library's.
    """
    target = identity.architecture if identity.architecture.startswith(_ZOOS) else CHECKPOINT
    return Repetition(_command(target, identity), " ".join(_hints(target, identity)))


def _hints(target: str, identity: Identity) -> Iterator[str]:
    if target == CHECKPOINT:
        yield (
            f"{CHECKPOINT} is the card of the weights with sha256 "
            f"{identity.checkpoint_sha256[:16]}..., or that file itself with "
            f"{' '.join(_without_card(identity))}."
        )
    if "adaptive" in identity.suite:
        yield "Add the --surrogate and --adaptive of the run, if it had any."
    if identity.carried:
        curve = f"{identity.norm}:SMALLER,{identity.eps_text}"
        yield (
            f"What run {identity.carried} broke at a smaller radius counts as broken: give both, "
            f"as --threat {curve}."
        )


def _without_card(identity: Identity) -> list[str]:
    """Returns the options that say what a card would say."""
    network, *arguments = identity.architecture.split(" ")
    options = [("--arch", network)]
    for argument in arguments:
        options.append(("--arch-arg", argument))
    options.append(("--normalisation", identity.normalisation))
    return _joined(options)


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
    joined = _joined([*options, *_mode(identity), *_speed(identity)])
    return f"rkd eval {shlex.quote(target)}", *joined


def _mode(identity: Identity) -> list[tuple[str, ...]]:
    """Returns the options of a run that did not go through all examples with the whole budget."""
    how, _, claim = identity.mode.partition(" ")
    if how == "until":
        return [("--until-decided", claim)]
    if how == "exact":
        return []
    return [("--mode", how)]


def _speed(identity: Identity) -> list[tuple[str, ...]]:
    """Returns the options of a search with other speedups than by default."""
    precision, *speedups = identity.precision.split("+")
    options: list[tuple[str, ...]] = []
    if precision != "fp32":
        options.append(("--precision", precision))
    if identity.engine == "native" and "fold" not in speedups:
        options.append(("--no-fold",))
    for speedup in speedups:
        if speedup != "fold":
            options.append((f"--{speedup}",))
    return options


def _joined(options: Sequence[tuple[str, ...]]) -> list[str]:
    return [shlex.join(option) for option in options]
