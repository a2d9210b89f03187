"""The contract of a defence: how it draws, and what an attacker may use in its place.

Any module that maps images to logits is a defence. It may offer more; each offer is a protocol of
one method, and none needs a base class:

- `Randomized`: `draw(images, key)` gives one answer per image; the key, never a global generator,
  decides which.
- `Batched`: such a defence, where a key decides the draws of a batch and not those of a row.
- `Mixture`: a finite randomized ensemble shows its members and weights, so that expectations are
  exact.
- `Surfaced`: named stand-ins with useful gradients, for adaptive attacks.
- `Armed`: attacks against itself that no surface can express.
- `Fitted`: fills its own tensors from data, without gradients.
- `Abstaining`: its last logit means "rejected"; such an answer counts as correct on an attacked
  image and as wrong on a clean one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from robustbench_kd.tensors import keyed_random
from robustbench_kd.tensors.contracts import Images, Labels, Logits


@dataclass(frozen=True)
class Key:
    """Names one draw of each row; equal keys give equal draws, on every device, in any batch.

    `ids` `(n,)` int64 are example ids, `draw` `(n,)` int64 numbers the draws under a `stream`.
    Searching and scoring use different streams, so they never share a draw.

    >>> key = Key(0, "score", ids=torch.tensor([7, 7]), draw=torch.tensor([0, 1]))
    >>> key.uniform("member", 1).shape
    torch.Size([2, 1])
    """

    seed: int
    stream: str
    ids: Tensor
    draw: Tensor

    def uniform(self, part: str, size: int) -> Tensor:
        """Returns numbers in [0, 1), float32 `(n, size)`; `part` names their purpose."""
        return keyed_random.uniform(
            self.seed, self._stream(part), self.ids, torch.zeros_like(self.ids), self.draw, size
        )

    def normal(self, part: str, size: int) -> Tensor:
        """Returns standard normal numbers, float32 `(n, size)`."""
        return keyed_random.normal(
            self.seed, self._stream(part), self.ids, torch.zeros_like(self.ids), self.draw, size
        )

    def under(self, name: str) -> "Key":
        """Returns a key with independent draws, for a part of a defence that draws for itself."""
        return replace(self, stream=self._stream(name))

    def repeated(self, times: int) -> "Key":
        """Returns the key of `times` different draws of each row, `(times * n,)`.

        All rows come once, then all again.
        """
        repeats = torch.arange(times, device=self.ids.device).repeat_interleave(len(self.ids))
        draw = self.draw.repeat(times) * times + repeats
        return replace(self, ids=self.ids.repeat(times), draw=draw)

    def take(self, rows: Tensor) -> "Key":
        """Returns the key of the given rows, int64 or bool."""
        return replace(self, ids=self.ids[rows], draw=self.draw[rows])

    def _stream(self, part: str) -> str:
        return f"{self.stream}/{part}"


# Names of surfaces: the defence itself, and all members of an ensemble or several draws at once.
OWN, EXPECTED = "defence", "expected"
Answer = Callable[[Images, Key], Logits]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A differentiable stand-in for a defence.

    Args:
        name: What it is: `backbone`, `straight-through`, `member-2`.
        answer: Maps images `(n, c, h, w)` and a key to logits `(n, classes)`, or to `(k, n,
            classes)` where an attack should average its loss over k answers.
        weights: The weight of each of k answers, `(k,)`; equal if None.
        passes: Passes of a network that one image costs.
        same_outputs: Whether the answers are the defence's own, so that only gradients differ.
            Candidates of other surfaces are always judged on the defence.
    """

    name: str
    answer: Answer
    weights: Tensor | None = None
    passes: int = 1
    same_outputs: bool = False


@runtime_checkable
class Randomized(Protocol):
    """A defence that is randomized."""

    def draw(self, images: Images, key: Key) -> Logits:
        """Returns the logits `(n, classes)` of one draw of each row."""
        ...


def is_randomized(model: object) -> TypeGuard[Randomized]:
    """Returns whether a model draws by a key: a method `draw` of another signature says nothing."""
    if not isinstance(model, Randomized):
        return False
    try:
        names = list(signature(model.draw).parameters)
    except (TypeError, ValueError):
        return False
    return len(names) == 2 and names[1].strip("_") == "key"


@runtime_checkable
class Batched(Protocol):
    """A randomized defence whose draws belong to a batch, because no key decides a row's own."""

    def batch_draws(self, images: Images, key: Key, draws: int) -> Tensor:
        """Returns the logits `(draws, n, classes)` of several draws of a batch, for a search."""
        ...

    def own_draws(self, images: Images, key: Key, draws: int) -> Tensor:
        """Returns the logits `(draws, n, classes)` of draws that other rows do not change."""
        ...


@runtime_checkable
class Mixture(Protocol):
    """A finite randomized ensemble: one member is drawn by `weights` `(m,)` with sum 1."""

    weights: Tensor

    def members(self) -> Sequence[nn.Module]:
        """Returns the members, each deterministic."""
        ...


@runtime_checkable
class Surfaced(Protocol):
    """A defence that declares the surfaces which an adaptive attacker would use."""

    def surfaces(self) -> Sequence[Surface]:
        """Returns the surfaces, cheapest first, with names that differ."""
        ...


class Adversary(Protocol):
    """An attack that calls the defence itself.

    It is judged like any other, but the engine makes no batches and counts no passes for it.
    """

    def __call__(self, images: Images, labels: Labels) -> Images:
        """Returns candidates `(n, c, h, w)` for correctly classified images."""
        ...


@runtime_checkable
class Armed(Protocol):
    """A defence that knows attacks against itself which no surface can express."""

    def attacks(self) -> Mapping[str, Callable[..., Adversary]]:
        """Returns factories by name, called with the defence, `norm=`, `eps=` and `seed=`."""
        ...


@runtime_checkable
class Fitted(Protocol):
    """A defence that fills its own tensors from data before, or instead of, any training."""

    def fit(
        self, images: Images, labels: Labels, held_out: Images, held_out_labels: Labels
    ) -> None:
        """Fills its tensors from training images; the held-out ones choose thresholds."""
        ...


@runtime_checkable
class Abstaining(Protocol):
    """A defence that may reject: its logits have one more column, the last one."""

    abstains: bool


def without_rejection(answers: Tensor, labels: Labels) -> Tensor:
    """Returns the answers `(..., n, classes + 1)` of an abstaining defence without the last column.

    Its logit is credited to the label: an attacker gains nothing from an image that is rejected.
    """
    classes = answers[..., :-1]
    rejected = answers[..., -1:]
    column = labels.expand(classes.shape[:-1])[..., None]
    credited = torch.maximum(classes.gather(-1, column), rejected)
    return classes.scatter(-1, column, credited)
