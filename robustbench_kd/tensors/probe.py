"""What trust checks are given: a sample to probe a defence on, and the facts of a finished run.

A check is one file of `trust/`. It offers functions of up to four names, each of which returns
findings:

- `probe(sample: Probe)` spends a few dozen passes on each image; `rkd check` runs no others.
- `search(attacks: ShortAttacks)` looks at short attacks (`tensors/short_attacks.py`), which run
  once for all checks.
- `review(facts: Facts)` reads what a finished run left, without a pass.
- `clean(answers: CleanAnswers)` looks at the clean pass (`tensors/clean_answers.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from robustbench_kd.core.errors import reason
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors import keyed_random
from robustbench_kd.tensors.attack import per_row
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.defence import EXPECTED, OWN
from robustbench_kd.tensors.geometry import project, steepest
from robustbench_kd.tensors.hyperplane import length
from robustbench_kd.tensors.losses import margin
from robustbench_kd.tensors.oracle import is_out_of_memory

Ask = Callable[[Images, Tensor], Logits]
Loss = Callable[[Logits, Labels], Tensor]

DEFENCE_ITSELF = (OWN, EXPECTED)  # surfaces that are the defence itself


class NoGradientError(Exception):
    """The gradient of a defence cannot be computed; the text says why."""


def reversed_margin(logits: Logits, labels: Labels) -> Tensor:
    """Returns minus the margin: a loss for the attacker to maximise, which never saturates."""
    return -margin(logits, labels)


def differentiated(
    ask: Callable[[Images], Logits], points: Images, objective: Callable[[Logits], Tensor]
) -> tuple[Logits, Tensor, Tensor]:
    """Returns the logits of points, an objective `(n,)` of them, and its gradient at the points.

    Raises `NoGradientError` where the defence fails under autograd, or its answer does not depend
    on the points by it.
    """
    points = points.detach().requires_grad_()
    try:
        with torch.enable_grad():
            logits = ask(points)
            values = objective(logits)
            (gradient,) = torch.autograd.grad(values.sum(), points)
    except (Exception, SystemExit) as error:  # foreign code can raise anything, and exit, too
        if is_out_of_memory(error):
            raise
        raise NoGradientError(reason(error)) from error
    return logits.detach(), values.detach(), gradient


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A sample of images that a defence classifies correctly, and how to ask about them.

    A randomized defence answers with one draw for each image, the same in all calls: an attack must
    succeed with the randomness fixed (Carlini et al. 2019, arXiv 1902.06705), and luck is no
    finding.

    Args:
        answer: Maps images `(m, c, h, w)` and the rows of the sample `(m,)` that they stand for to
            logits, differentiably.
        images: Clean images `(n, c, h, w)`, classified as `labels` `(n,)` says, with the answers
            `logits` `(n, classes)`.
        ids: Example ids, int64 `(n,)`; with the seed they key all randomness.
        threat: The norm and the radius that set the scale.
        randomized: Whether the defence is randomized by a key.
        batched: Whether its draws belong to batches, so that other batches bring other draws.
        was_training: Whether it came in training mode.
        correct: Which images of a larger sample it classifies correctly under usual normalisations,
            `(m,)` by name.
        normalisation: The name of its own normalisation among these.
    """

    answer: Ask
    images: Images
    labels: Labels
    ids: Tensor
    logits: Logits
    threat: Threat
    seed: int = 0
    randomized: bool = False
    batched: bool = False
    was_training: bool = False
    correct: Mapping[str, Tensor] = field(default_factory=dict)
    normalisation: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def rows(self) -> Tensor:
        """All rows, int64 `(n,)`."""
        return torch.arange(len(self), device=self.images.device)

    @cached_property
    def again(self) -> Logits:
        """The logits of the clean images in a second call."""
        return self.ask(self.images)

    @cached_property
    def clean(self) -> tuple[Tensor, Tensor]:
        """The reversed margin `(n,)` of the clean images and its gradient.

        Raises `NoGradientError`.
        """
        return self.slope(self.images)

    def examples(self, rows: Tensor) -> list[int]:
        """Returns the ids of rows, int64 or bool, in ascending order."""
        return sorted(self.ids[rows].tolist())

    @torch.no_grad()
    def ask(self, points: Images, rows: Tensor | None = None) -> Logits:
        """Returns the logits of points that stand for rows, for all rows if None."""
        return self.answer(points, self.rows if rows is None else rows)

    def loss(self, points: Images) -> Tensor:
        """Returns the reversed margin `(n,)` of one point for each row."""
        return reversed_margin(self.ask(points), self.labels)

    def slope(self, points: Images, loss: Loss = reversed_margin) -> tuple[Tensor, Tensor]:
        """Returns the loss `(n,)` of one point for each row, and its gradient.

        Raises `NoGradientError`.
        """
        _, values, gradient = differentiated(
            lambda images: self.answer(images, self.rows),
            points,
            lambda logits: loss(logits, self.labels),
        )
        return values, gradient

    def nearby(
        self, part: str, fraction: float, *, repeat: int = 0, rows: Tensor | None = None
    ) -> Images:
        """Returns random points in the box, different ones for each `part` and `repeat`.

        For linf they are uniform in the cube of a fraction of the radius; for l2 and l1 they lie on
        the sphere.
        """
        rows = self.rows if rows is None else rows
        return self._moved(rows, fraction * self.noise(part, repeat, rows))

    def corners(self, part: str, *, repeat: int = 0, rows: Tensor | None = None) -> Images:
        """Returns random corners of the cube for linf, and points like `nearby` for l2 and l1.

        The box cuts off the corners.
        """
        rows = self.rows if rows is None else rows
        noise = self.noise(part, repeat, rows)
        return self._moved(rows, noise.sign() if self.threat.norm is Norm.LINF else noise)

    def ascent(self, fraction: float, gradient: Tensor) -> Images:
        """Returns the points at a fraction of the radius along a gradient, in the box."""
        eps = fraction * self.threat.eps
        norm = self.threat.norm
        # The steepest step of l1 moves a single pixel, which says little of an image.
        size = per_row(length(gradient.flatten(1), norm), gradient)
        unit = gradient / size if norm is Norm.L1 else steepest(gradient, norm)
        return project(self.images + eps * unit.nan_to_num(), self.images, eps, norm)

    def uniform(self, part: str, repeat: int) -> Tensor:
        """Returns numbers in [-1, 1) for every pixel, other ones for each `part` and `repeat`."""
        return self._drawn(keyed_random.uniform, part, repeat, self.rows) * 2 - 1

    def noise(self, part: str, repeat: int, rows: Tensor) -> Tensor:
        """Returns noise for rows: uniform in [-1, 1) for linf, random directions for l2 and l1.

        The directions have length 1.
        """
        if self.threat.norm is Norm.LINF:
            return self._drawn(keyed_random.uniform, part, repeat, rows) * 2 - 1
        steps = self._drawn(keyed_random.normal, part, repeat, rows)
        return steps / per_row(length(steps.flatten(1), self.threat.norm), steps)

    def _drawn(self, draw: Callable[..., Tensor], part: str, repeat: int, rows: Tensor) -> Tensor:
        like = self.images[rows]
        drawn = draw(
            self.seed,
            f"trust/{part}",
            self.ids[rows],
            torch.zeros_like(rows),
            repeat,
            like[0].numel(),
        )
        return drawn.view_as(like).to(like.dtype)

    def _moved(self, rows: Tensor, steps: Tensor) -> Images:
        return (self.images[rows] + self.threat.eps * steps).clamp(0, 1)


@dataclass(frozen=True)
class FinishedStage:
    """One stage of a run: which examples it broke, and how.

    `guided` says whether it follows gradients, `surface` what it searched on, `adaptive` whether it
    came after the standard attacks. `refused` counts points that the search took for adversarial
    and that the defence classified correctly, `undefined` answers that were NaN or infinite among
    so many `computed`.
    """

    name: str
    broken: frozenset[int]
    guided: bool
    surface: str = DEFENCE_ITSELF[0]
    adaptive: bool = False
    refused: int = 0
    undefined: int = 0
    computed: int = 0


@dataclass(frozen=True)
class Facts:
    """What a finished run on `examples` images knows.

    `stages` are its attacks in order; `margins` those of the broken examples, by id, on the images
    that broke them; `composite` says whether the defence is more than a plain classifier.
    """

    examples: int
    stages: tuple[FinishedStage, ...]
    margins: Mapping[int, float] = field(default_factory=dict)
    composite: bool = False
