"""What an attack may search on in place of a defence, from what one forward pass shows."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_kd.engine.anatomy.likeness import (
    Follower,
    Voters,
    bridges,
    earliest,
    last_followers,
    voters,
)
from robustbench_kd.engine.anatomy.places import Place
from robustbench_kd.engine.anatomy.recording import Recording
from robustbench_kd.engine.anatomy.rewired_answer import RewiredAnswer, Tap
from robustbench_kd.engine.anatomy.rewiring import Bridge, Wiring


@dataclass(frozen=True)
class Findings:
    """What a forward pass shows.

    Args:
        followers: The last tensors that follow the images.
        voters: The earliest tensors that decide as the answer does.
        decider: The earliest of those that decide most often as the answer does.
        repaired: What ends or changes gradients and within which module, by its place.
        gates: Whether there are gates.
    """

    followers: tuple[Follower, ...]
    voters: tuple[Voters, ...]
    decider: Voters | None
    repaired: dict[Place, tuple[str, str]]
    gates: bool


def read(model: nn.Module, recording: Recording) -> Findings:
    """Returns what a recorded forward pass of a model shows."""
    final = recording.output
    found = voters(recording, final, whole_tables(model, final.shape[1]))
    return Findings(
        followers=tuple(last_followers(recording)),
        voters=tuple(earliest(found)),
        decider=max(found, key=lambda one: one.agreed, default=None),
        repaired={site.place: text for site, text in recording.repaired.items()},
        gates=recording.gates,
    )


def whole_tables(model: nn.Module, classes: int) -> list[Tensor]:
    """Returns the tensors of a model that may say which class each of its stored examples has."""
    found = []
    for module in model.modules():
        for value in [*module.buffers(recurse=False), *vars(module).values()]:
            if _is_table(value, classes):
                found.append(value.long())
    return found


def candidates(model: nn.Module, found: Findings) -> Iterator[tuple[str, RewiredAnswer]]:
    """Yields rewired forms of a model by name, the simple ones first."""
    taps = _taps(found)
    crossings: list[dict[Place, Bridge]] = [{}]
    if found.followers:
        crossings.append(bridges(found.followers))

    for opens in [False, True] if found.gates else [False]:
        for crossing in crossings:
            for name, tap in taps.items():
                wiring = Wiring(opens=opens, bridges=crossing, taps=frozenset(tap.readings))
                parts = [
                    name,
                    "straight-through" if crossing else "",
                    "open-gates" if opens else "",
                ]
                full_name = "+".join(part for part in parts if part) or "repaired"
                yield full_name, RewiredAnswer(model, wiring, tap)


def _taps(found: Findings) -> dict[str, Tap]:
    taps = {"": Tap()}
    inner = found.voters
    if not inner:
        return taps

    readings = {one.event.site.place: one.reading for one in inner}
    many = sum(len(one.answers) for one in inner) > 1
    taps["voters" if many else "inner-logits"] = Tap(readings)
    if len(inner) > 1:
        last = inner[-1]
        taps["last-logits"] = Tap({last.event.site.place: last.reading}, last=True)
    decider = found.decider
    if decider is not None and all(decider is not one for one in inner):
        taps["deciding-logits"] = Tap({decider.event.site.place: decider.reading})
    return taps


def _is_table(value: object, classes: int) -> bool:
    if not isinstance(value, Tensor) or value.ndim != 1 or value.is_floating_point():
        return False
    return value.dtype is not torch.bool and len(value) >= classes and int(value.min()) >= 0
