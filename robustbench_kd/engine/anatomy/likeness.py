"""Which tensors of a forward pass look like its images, and which like its answer."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.engine.anatomy.places import Place
from robustbench_kd.engine.anatomy.recording import Event, Recording
from robustbench_kd.engine.anatomy.rewiring import Bridge
from robustbench_kd.engine.anatomy.starts import Starts, line_fit
from robustbench_kd.tensors.contracts import Logits

_FOLLOWS = 0.5  # R^2 of the best line through pixels, from which a tensor follows the images
_AGREES = 0.6  # fraction of images on which a voter must agree with the answer

Layout: TypeAlias = Literal["outer", "inner", "pairs"]


@dataclass(frozen=True)
class Follower:
    """An event whose tensor follows the images line by line, with the slope of each channel.

    `always` says whether every tensor that came out at its place is the last of its kind.
    """

    event: Event
    slope: Tensor
    always: bool = False


def last_followers(recording: Recording) -> list[Follower]:
    """Returns the last tensors that follow the images line by line.

    Such a tensor follows the first one of its shape: the images, or what they were resized, padded
    or copied to. The network that follows has no other tensor of this kind in it.
    """
    followers = list(_followers(recording))
    last: list[Follower] = []
    for one in reversed(followers):
        value = one.event.went_on
        if last and not depends(recording.output, value):
            continue
        if not any(depends(later.event.went_on, value) for later in last):
            last.append(one)

    turns = Counter(one.event.site.place for one in followers)
    last_turns = Counter(one.event.site.place for one in last)
    places = [one.event.site.place for one in last]
    always = [turns[place] == last_turns[place] for place in places]
    return [replace(one, always=whole) for one, whole in zip(last, always, strict=True)]


def bridges(followers: Iterable[Follower]) -> dict[Place, Bridge]:
    """Returns the bridges that lead the gradients of followers straight to the images."""
    slopes: dict[Place, dict[int, Tensor]] = {}
    always: dict[Place, bool] = {}
    for one in followers:
        site = one.event.site
        slopes.setdefault(site.place, {})[site.turn] = one.slope
        always[site.place] = one.always
    return {place: Bridge(found, always[place]) for place, found in slopes.items()}


def _followers(recording: Recording) -> Iterator[Follower]:
    """Yields all tensors that follow the images, in order."""
    starts = Starts(recording.images)
    for event in recording.events:
        value = event.value
        start = starts.of(value, opaque=event.opaque)
        if start is None or start is value:
            continue
        slope, explained = line_fit(start, value)
        if explained >= _FOLLOWS:
            yield Follower(event, slope)


@dataclass(frozen=True)
class Reading:
    """How a tensor is read as answers of voters `(k, n, classes)`.

    Args:
        layout: Whether voters or images come first where k answers share a dimension; `pairs` are
            two logits, against and for, of each class.
        sign: -1 where the least number wins, as for distances.
        owners: The class of each column `(m,)` where columns are stored examples.
    """

    layout: Layout = "outer"
    sign: int = 1
    owners: Tensor | None = None

    def answers(self, value: Tensor, n: int, classes: int) -> Tensor | None:
        """Returns the answers of k voters, None where the tensor has another shape."""
        value = self.sign * value
        if self.owners is not None:
            return _best_of_owners(value, self.owners, n, classes)
        if self.layout == "pairs":
            return _pairs(value, n, classes)
        if value.shape[-1] != classes or value.numel() % (n * classes) or value.ndim > 3:
            return None
        if self.layout == "inner":
            return value.reshape(n, -1, classes).transpose(0, 1)
        return value.reshape(-1, n, classes)


def _best_of_owners(value: Tensor, owners: Tensor, n: int, classes: int) -> Tensor | None:
    """Returns the best score among the stored examples of each class."""
    if value.shape != (n, len(owners)):
        return None
    least = value.detach().min() - 1
    scores = least.expand(n, classes)
    return scores.scatter_reduce(1, owners.expand(n, -1), value, "amax")[None]


def _pairs(value: Tensor, n: int, classes: int) -> Tensor | None:
    if value.shape == (classes, n, 2):
        return (value[..., 1] - value[..., 0]).T[None]
    if value.shape == (n, classes, 2):
        return (value[..., 1] - value[..., 0])[None]
    return None


@dataclass(frozen=True)
class Voters:
    """An event whose tensor can be read as answers, `answers` `(k, n, classes)`.

    `agreed` is the fraction of the answers that decide as the final one does.
    """

    event: Event
    reading: Reading
    answers: Tensor
    agreed: float


def voters(recording: Recording, final: Logits, tables: list[Tensor]) -> list[Voters]:
    """Returns all tensors but the final one that decide as it does, in order.

    `tables` are whole numbers `(m,)` that may say which class a stored example has.
    """
    read = (_read(event, final, tables) for event in _whole(recording))
    return [one for one in read if one is not None and one.event.went_on is not recording.output]


def earliest(found: Iterable[Voters]) -> list[Voters]:
    """Returns the voters that depend on no other."""
    sources: list[Voters] = []
    for one in found:
        if not any(depends(one.event.went_on, source.event.went_on) for source in sources):
            sources.append(one)
    return sources


def _whole(recording: Recording) -> Iterator[Event]:
    """Yields the events, those of a loop over images or parts of a batch as one at its end."""
    n = len(recording.images)
    parts: dict[tuple[Place, int], list[Event]] = {}
    for event in recording.events:
        if event.value.ndim != 2 or len(event.value) >= n:
            yield event
            continue
        parts.setdefault((event.site.place, event.value.shape[1]), []).append(event)
    for events in parts.values():
        if sum(len(event.value) for event in events) % n == 0:
            value = torch.cat([event.value for event in events])
            went_on = torch.cat([event.went_on for event in events])
            yield replace(events[0], value=value, went_on=went_on)


def _read(event: Event, final: Logits, tables: list[Tensor]) -> Voters | None:
    value = event.value
    if value.ndim > 3:
        return None
    n, classes = final.shape
    decided = final.argmax(dim=1)
    best = None
    most = _AGREES
    for reading in _readings(value, classes, tables):
        answers = reading.answers(value, n, classes)
        if answers is None or not bool(answers.isfinite().all()):
            continue
        agreed = float((answers.argmax(dim=2) == decided).float().mean())
        if agreed > most:
            best, most = Voters(event, reading, answers, agreed), agreed
    return best


def _readings(value: Tensor, classes: int, tables: list[Tensor]) -> Iterator[Reading]:
    for sign in (1, -1):
        if value.shape[-1] == classes:
            yield Reading("outer", sign)
            yield Reading("inner", sign)
        if value.ndim == 3 and value.shape[-1] == 2:
            yield Reading("pairs", sign)
        if value.ndim == 2:
            for table in tables:
                if len(table) == value.shape[1] and int(table.max()) < classes:
                    yield Reading(sign=sign, owners=table)


def depends(value: Tensor, source: Tensor) -> bool:
    """Returns whether a tensor was computed from a source, as far as gradients tell."""
    if not value.requires_grad or not source.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(
        value.sum(), source, allow_unused=True, retain_graph=True, materialize_grads=False
    )
    return gradient is not None


def vote(answers: Tensor) -> Logits:
    """Returns logits `(n, classes)` of a soft vote of k answers `(k, n, classes)`.

    A voter who is far from changing the mind, or has changed it already, counts little: an attack
    spends its steps on those who are near.
    """
    if len(answers) == 1:
        return answers[0]
    ranked = answers.detach().topk(2, dim=2).values
    width = (ranked[..., 0] - ranked[..., 1]).median().clamp(min=1e-6)
    shares = functional.softmax(answers * (_SHARP / width), dim=2)
    return shares.mean(dim=0).clamp(min=1e-12).log()


_SHARP = 2.0  # the median margin of voters, in units of the softmax
