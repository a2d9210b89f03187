"""A defence that asks global generators: found out, and evaluated as the randomized one it is.

Its draws run under seeds of their own, in a fork of all generators. To score an image it is asked
about copies of this image alone, so that the score does not depend on the rest of a batch.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.defences._arc import Arc
from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.defence import EXPECTED, Adversary, Key, Surface
from robustbench_kd.tensors.seeds import forked, global_state, seed_of, seeded

_DRAWS = 10  # draws that one step of a search averages over
_LIMIT = 1e-4  # of the range of logits, as for the check `randomness`
_TRIALS = 20  # answers that are compared; a defence of few members may draw the same one again
_FEW_IMAGES = 8  # between which answers are compared
_FEW = 8  # trials where no generator was asked, or where draws repeat
_MOST_MEMBERS = 8
_COPIES = 4
_WAYPOINTS = 7

Ask = Callable[[Images], Logits]


@dataclass(frozen=True)
class Chance:
    """What is known of the randomness of a defence.

    Args:
        rows_differ: Whether copies of an image in one batch get draws of their own.
        repeats: Whether equal seeds give equal answers.
        seeds: A seed of each of the few answers that ever come, for a finite ensemble.
        shares: How often each of these came.
    """

    rows_differ: bool
    repeats: bool
    seeds: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()


class Member(nn.Module):
    """A defence under one seed: a member of the ensemble that hides behind chance."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model = model
        self.seed = seed

    def forward(self, images: Images) -> Logits:
        """Maps images `(n, c, h, w)` to logits `(n, classes)`, always in the same way."""
        with seeded(self.seed, self.model):
            logits: Logits = self.model(images)
        return logits


class Ensemble(nn.Module):
    """The finite ensemble that hides behind chance, with the weights that were counted."""

    def __init__(self, model: nn.Module, chance: Chance) -> None:
        super().__init__()
        self.weights = torch.tensor(chance.shares)
        self._members = [Member(model, seed) for seed in chance.seeds]

    def members(self) -> Sequence[nn.Module]:
        """Returns the members, each deterministic."""
        return self._members


class Unkeyed(nn.Module):
    """A defence that asks global generators, as a randomized defence with keys.

    `draw` and `batch_draws` ask about a whole batch under one seed; `own_draws` asks about each
    image by itself.
    """

    def __init__(self, model: nn.Module, chance: Chance) -> None:
        super().__init__()
        self.model = model
        self.chance = chance

    def forward(self, images: Images) -> Logits:
        """Maps images to logits by a fresh draw of the global generators."""
        logits: Logits = self.model(images)
        return logits

    def draw(self, images: Images, key: Key) -> Logits:
        """Returns the logits `(n, classes)` of a batch under the seed of its first row."""
        with seeded(_seed(key, 0), self.model):
            logits: Logits = self.model(images)
        return logits

    def batch_draws(self, images: Images, key: Key, draws: int) -> Tensor:
        """Returns `(draws, n, classes)`: several draws of a whole batch."""
        return averaged(self.model, self.model, self.chance)(images, key, draws)

    def own_draws(self, images: Images, key: Key, draws: int) -> Tensor:
        """Returns `(draws, n, classes)`: the draws of each image do not depend on the others."""
        rows = range(len(images))
        with forked(self.model) as reseed:
            found = [self._of_one(images[row : row + 1], key, row, draws, reseed) for row in rows]
        return torch.stack(found, dim=1)

    def surfaces(self) -> Sequence[Surface]:
        """Returns the mean over draws, or over the members of a finite ensemble."""
        return [expected(self.model, self.model, self.chance, EXPECTED)]

    def attacks(self) -> Mapping[str, Callable[..., Adversary]]:
        """Returns ARC on the members of a finite ensemble."""
        if not self.chance.seeds:
            return {}
        return {"arc": partial(_arc, Ensemble(self.model, self.chance))}

    def _of_one(
        self, image: Images, key: Key, row: int, draws: int, reseed: Callable[[int], None]
    ) -> Tensor:
        """Returns `(draws, classes)` of one image: one call where copies differ."""
        first = seed_of(key.seed, key.stream, int(key.ids[row]))
        if self.chance.rows_differ:
            reseed(first)
            logits: Logits = self.model(image.repeat(draws, 1, 1, 1))
            return logits
        found = []
        for number in range(draws):
            reseed(first ^ number)
            found.append(self.model(image))
        return torch.cat(found)


def averaged(ask: Ask, model: nn.Module, chance: Chance) -> Callable[[Images, Key, int], Tensor]:
    """Returns a function that asks a defence, or a form of it, for several draws of a batch."""

    def answer(images: Images, key: Key, draws: int) -> Tensor:
        if chance.rows_differ:
            with seeded(_seed(key, 0), model):
                logits = ask(images.repeat(draws, 1, 1, 1))
            return logits.view(draws, len(images), logits.shape[1])

        found = []
        for number in range(draws):
            with seeded(_seed(key, number), model):
                found.append(ask(images))
        return torch.stack(found)

    return answer


def expected(ask: Ask, model: nn.Module, chance: Chance, name: str, passes: int = 1) -> Surface:
    """Returns a surface that averages over draws, or over all members of a finite ensemble."""
    same = ask is model
    if not chance.seeds:
        draws = averaged(ask, model, chance)
        return Surface(
            name=name,
            answer=lambda images, key: draws(images, key, _DRAWS),
            passes=_DRAWS * passes,
            same_outputs=same,
        )

    def members(images: Images, _key: Key) -> Tensor:
        found = []
        for seed in chance.seeds:
            with seeded(seed, model):
                found.append(ask(images))
        return torch.stack(found)

    return Surface(
        name=name,
        answer=members,
        weights=torch.tensor(chance.shares),
        passes=len(chance.seeds) * passes,
        same_outputs=same,
    )


@torch.no_grad()
def find_chance(model: nn.Module, images: Images) -> Chance | None:
    """Returns what is known of the randomness of a frozen model, None where it has none.

    Images are `(n, c, h, w)`. All generators are as before afterwards.
    """
    few = images[:_FEW_IMAGES]
    with seeded(seed_of("chance"), model):
        model(images)  # some models build a part at their first call
        before = global_state()
        first = model(images)
        asked = global_state() != before
        differs = any(_differ(first, model(images)) for _ in range(_FEW))
        if asked and not differs:
            # Near a boundary answers differ that are equal on clean images, such as a vote's.
            between = _between(few)
            first = model(between)
            differs = any(_differ(first, model(between)) for _ in range(_TRIALS))
    if not differs:
        return None

    repeats = _repeats(model, images, trials=_FEW if asked else _TRIALS)
    rows_differ = _rows_differ(model, few)
    seeds: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()
    if repeats and not rows_differ:
        seeds, shares = _members(model, _between(few))
    return Chance(rows_differ, repeats, seeds, shares)


def _repeats(model: nn.Module, images: Images, *, trials: int) -> bool:
    """Returns whether equal seeds give equal answers, also where calls are counted."""
    first = _under(1, model, images)
    return not any(_differ(first, _under(1, model, images)) for _ in range(trials))


def _rows_differ(model: nn.Module, images: Images) -> bool:
    """Returns whether copies of an image in one batch get different answers."""
    copies = _under(2, model, _between(images).repeat(_COPIES, 1, 1, 1))
    answers = torch.unflatten(copies, 0, (_COPIES, -1))
    return _differ(answers, answers[:1].expand_as(answers))


def _between(images: Images) -> Images:
    """Returns images on the way from each image to the next, where classes change."""
    shares = torch.linspace(0.2, 0.8, _WAYPOINTS, device=images.device).view(-1, 1, 1, 1, 1)
    mixed = (1 - shares) * images + shares * images.roll(1, dims=0)
    return torch.cat([images, mixed.flatten(0, 1)])


def _under(seed: int, model: nn.Module, images: Images) -> Logits:
    with seeded(seed, model):
        logits: Logits = model(images)
    return logits


def _members(model: nn.Module, images: Images) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Returns a seed and the share of each answer, if these are so few that each comes again."""
    answers: list[tuple[int, Logits]] = []
    counts: Counter[int] = Counter()
    for seed in range(3 * _TRIALS):
        answer = _under(seed, model, images)
        known = [number for number, (_, old) in enumerate(answers) if not _differ(answer, old)]
        if not known:
            answers.append((seed, answer))
        if len(answers) > _MOST_MEMBERS:
            return (), ()
        counts[known[0] if known else len(answers) - 1] += 1

    shares = [counts[number] / counts.total() for number in range(len(answers))]
    return tuple(seed for seed, _ in answers), tuple(shares)


def finding(chance: Chance) -> Finding:
    """Returns what a reader must know of a defence with hidden randomness."""
    if not chance.repeats:
        return Finding(
            check="chance-not-repeatable",
            severity=Severity.RED,
            message="the answers change from call to call even under the same seeds of torch, "
            "numpy and Python: no draw can be repeated",
            advice="take all random numbers from torch's generator, and nothing from the clock or "
            "from earlier calls",
        )
    kind = "each image of a batch has draws of its own"
    if not chance.rows_differ:
        kind = "one draw serves a whole batch"
    if chance.seeds:
        kind = f"one of {len(chance.seeds)} answers is drawn for a whole batch"
    return Finding(
        check="hidden-chance",
        severity=Severity.INFO,
        message=f"the defence draws random numbers without a key; {kind}. It is evaluated as a "
        "randomized defence, under seeds that no search has seen",
        advice="offer draw(images, key), so that a search does not depend on the batch",
    )


def _arc(ensemble: Ensemble, _model: nn.Module, *, norm: str, eps: float, seed: int) -> Adversary:
    return Arc(ensemble, norm=norm, eps=eps, seed=seed)


def _seed(key: Key, number: int) -> int:
    return seed_of(key.seed, key.stream, int(key.ids[0]), int(key.draw[0]), number)


def _differ(one: Logits, other: Logits) -> bool:
    """Returns whether two answers differ by more than rounding."""
    if one.shape != other.shape:
        return True
    span = one.max() - one.min()
    return bool((one - other).abs().max() > _LIMIT * span.clamp(min=1e-30))
