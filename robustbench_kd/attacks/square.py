"""Square Attack: random search over square windows, by queries alone, as in AutoAttack.

Source: Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack
via random search", algorithms 1 to 3; for l1 Croce and Hein 2021, "Mind the box", section 5;
`square.py` of fra31/auto-attack at a392200.

Given the same random numbers, the queries are those that AutoAttack makes for a batch of one. What
differs is on purpose:

- Each row draws its own windows, signs and orientations. AutoAttack draws windows, and for linf
  signs, once for the whole batch, so that the other images in it take part in a verdict.
- A tie between the label and another class does not end the search, because it is no success.
- The first grid of l2 and l1 is centred and covers images of any shape. AutoAttack's leaves the
  image at some sizes.
- For l1, a window without change counts as empty. AutoAttack scales up what rounding leaves there.
"""

from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.attacks import _square_windows
from robustbench_kd.attacks._square_windows import length, signs
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Attack, Rows, Shared, SharedLeast, per_row
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.geometry import project
from robustbench_kd.tensors.keyed_random import uniform
from robustbench_kd.tensors.losses import margin

_STREAM = "square"
_TINY = 1e-12
_AHEAD = 32  # steps whose random numbers are drawn at once

S = TypeVar("S", bound="SquareState")


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search that keeps a change to a square window where it lowers the margin.

    Args:
        queries: Changes that are tried; a restart evaluates its first point besides.
        p_init: Fraction of the image that the first windows cover.
        restarts: Restarts of an example, each with its own random numbers.

    >>> Square().restart_count(Norm.LINF, 10)
    1
    """

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1

    def restart_count(self, norm: Norm, classes: int) -> int:
        """Returns the number of restarts."""
        return self.restarts

    def schedule(self, norm: Norm) -> tuple[bool, ...]:
        """Returns that no point wants a gradient."""
        return (False,) * (self.queries + 1)

    def start_points(self, rows: Rows, threat: Threat, seed: int) -> Images:
        """Returns the images with stripes for linf, and with a grid of bumps for l2 and l1."""
        if threat.norm is Norm.LINF:
            return _stripes(rows, threat, seed)
        return _grid(rows, threat, seed)

    def begin(self, rows: Rows, threat: Threat, points: Images, seed: int) -> "SquareState":
        """Returns the state of restarts that begin at the given points."""
        windows = _square_windows.windows(rows.images, threat.norm, self.p_init)
        state = SquareState(
            images=rows.images,
            labels=rows.labels,
            ids=rows.ids,
            restart=rows.restart,
            step=torch.zeros_like(rows.restart),
            margin=torch.full_like(rows.logits[:, 0], torch.inf),
            best=rows.images,
            point=points,
            draws=rows.images.new_zeros(0),
            first=rows.restart,
            left=0,
            threat=threat,
            seed=seed,
            halved_after=windows.halved_after,
            sides=windows.sides,
            bumps=windows.bumps,
        )
        return _stocked(state, torch.ones_like(rows.restart))


@dataclass(frozen=True)
class SquareState:
    """Where each row stands: the best point with its margin, the asked point, and the steps so far.

    `draws` `(n, ahead, size)` hold what is drawn for the steps from `first` `(n,)` on: random
    numbers, for linf made into strokes. `left` counts the steps until more are drawn. The sizes of
    windows are those of `Windows`.
    """

    images: Images
    labels: Labels
    ids: Tensor
    restart: Tensor
    step: Tensor
    margin: Tensor
    best: Images
    point: Images
    draws: Tensor
    first: Tensor
    left: SharedLeast[int]
    threat: Shared[Threat]
    seed: Shared[int]
    halved_after: Shared[Tensor]
    sides: Shared[Tensor]
    bumps: Shared[Tensor]

    def ask(self) -> Images:
        """Returns the first points, then the best points with one window changed."""
        return self.point

    def objective(self, logits: Logits) -> Tensor:
        """Returns minus the margin, `(1, n)`."""
        return -margin(logits, self.labels)[None]

    def tell(self, logits: Logits, values: Tensor, gradient: Tensor | None) -> Self:
        """Returns the state with the asked points kept where they lower the margin.

        AutoAttack also keeps any point whose margin is not positive. That is the same, because a
        row leaves its search once the best margin is not positive.
        """
        found = -values[0]
        better = found < self.margin
        moved = replace(
            self,
            step=self.step + 1,
            margin=torch.fmin(found, self.margin),
            best=_choose(per_row(better, self.best), self.point, self.best),
            left=self.left - 1,
        )
        if not moved.left:
            moved = _stocked(moved, moved.step)

        change = _recolour if self.threat.norm is Norm.LINF else _transfer
        return replace(moved, point=change(moved))


def _stripes(rows: Rows, threat: Threat, seed: int) -> Images:
    """Returns the images with every column of every channel at one end of the linf ball."""
    _, channels, _, width = rows.images.shape
    draws = uniform(seed, _STREAM, rows.ids, rows.restart, 0, channels * width)
    ends = signs(draws, rows.images).view(-1, channels, 1, width)
    return torch.add(rows.images, ends, alpha=threat.eps).clamp_(0, 1)


def _grid(rows: Rows, threat: Threat, seed: int) -> Images:
    """Returns the images plus a grid of bumps, often 5 by 5, of random signs and directions."""
    images = rows.images
    n, channels, height, width = images.shape
    side = max(min(height, width) // 5, 1)
    down = height // side
    across = width // side

    size = down * across * (1 + channels)
    draws = uniform(seed, _STREAM, rows.ids, rows.restart, 0, size)
    draws = draws.view(n, 1, down, across, 1 + channels)
    orientation = (draws[..., 0] > 0.5).long()
    bumps = _square_windows.bumps(side, threat.norm).to(images)[orientation]
    factors = signs(draws[..., 1:], images).transpose(1, 4)
    cells = (factors[..., None] * bumps).transpose(3, 4)
    cells = cells.reshape(n, channels, down * side, across * side)

    above = (height - down * side) // 2
    below = height - down * side - above
    left = (width - across * side) // 2
    right = width - across * side - left
    change = functional.pad(cells, [left, right, above, below])
    return _onto_ball(change, images, threat)


def _stocked(state: S, first: Tensor) -> S:
    """Returns the state with all draws for the steps from `first` `(n,)` on.

    To draw for many steps at once costs little more than for one.
    """
    ids = state.ids.repeat_interleave(_AHEAD)
    restarts = state.restart.repeat_interleave(_AHEAD)
    steps = (first[:, None] + torch.arange(_AHEAD, device=first.device)).flatten()
    channels = state.images.shape[1]

    if state.threat.norm is Norm.LINF:
        draws = uniform(state.seed, _STREAM, ids, restarts, steps, 2 + channels)
        draws = _strokes(state, draws, steps)
    else:
        draws = uniform(state.seed, _STREAM, ids, restarts, steps, 5 + channels)

    draws = draws.view(len(first), _AHEAD, -1)
    return replace(state, draws=draws, first=first, left=_AHEAD - 1)


def _strokes(state: "SquareState", draws: Tensor, step: Tensor) -> Tensor:
    """Returns what steps `(m,)` paint, `(m, h + w + c)`, from random numbers `(m, 2 + c)`.

    It is 1 for the lines and columns of one window and 0 for others; for each channel it is the
    end of the linf ball.
    """
    images = state.images
    height, width = images.shape[2:]
    side = state.sides[_level(state, step)]

    rows = _square_windows.offsets(draws[:, 0], side, height)
    columns = _square_windows.offsets(draws[:, 1], side, width)
    ends = state.threat.eps * signs(draws[:, 2:], images)
    return torch.cat(
        [
            _square_windows.within(rows, side, images),
            _square_windows.within(columns, side, images),
            ends,
        ],
        dim=1,
    )


def _recolour(state: "SquareState") -> Images:
    """Returns the best points with one window at the ends of the linf ball, one per channel."""
    channels, height, width = state.images.shape[1:]
    rows, columns, ends = torch.split(_drawn(state), [height, width, channels], dim=1)
    painted = (state.images + ends[:, :, None, None]).clamp_(0, 1)
    return torch.lerp(state.best, painted, rows[:, None, :, None] * columns[:, None, None, :])


def _transfer(state: "SquareState") -> Images:
    """Returns the best points with the change of a second window moved into a first one.

    The change also takes all of the radius that is not used yet.
    """
    images = state.images
    norm = state.threat.norm
    height, width = images.shape[2:]
    draws = _drawn(state)
    level = _level(state, state.step)
    side = state.sides[level]

    rows = _square_windows.offsets(draws[:, 0], side, height)
    columns = _square_windows.offsets(draws[:, 1], side, width)
    target = _square_windows.window(rows, columns, side, images)
    source_rows = _square_windows.offsets(draws[:, 2], side, height)
    source_columns = _square_windows.offsets(draws[:, 3], side, width)
    source = _square_windows.window(source_rows, source_columns, side, images)

    factors = signs(draws[:, 5:], images)[:, :, None, None]
    transposed = draws[:, 4] > 0.5
    bump = factors * _square_windows.bump_at(state.bumps, level, transposed, rows, columns)

    change = state.best - images
    moved = change * torch.maximum(target, source)
    old = change * target
    new = bump + old / (length(old, norm) + _TINY)
    new *= _radius(change, moved, state.threat) / (length(new, norm) + _TINY)
    return _onto_ball(change - moved + new, images, state.threat)


def _radius(change: Tensor, moved: Tensor, threat: Threat) -> Tensor:
    """Returns how long the new change of each channel becomes, `(n, c, 1, 1)`.

    It is the length of what was moved and a part of the unused radius. For l1 what was moved counts
    once for each channel, as it does in AutoAttack; the projection takes it back.
    """
    used = length(change, threat.norm, (1, 2, 3))
    channels = change.shape[1]
    here = length(moved, threat.norm)

    if threat.norm is Norm.L1:
        return (threat.eps - used).clamp(min=0) + channels * here
    return ((threat.eps**2 - used.square()).clamp(min=0) / channels + here.square()).sqrt()


def _onto_ball(change: Tensor, images: Images, threat: Threat) -> Images:
    """Returns the images plus the change, stretched (l2) or shrunk (l1) to the radius."""
    if threat.norm is Norm.L1:
        return project(images + change, images, threat.eps, Norm.L1)

    scale = threat.eps / (length(change, Norm.L2, (1, 2, 3)) + _TINY)
    return torch.addcmul(images, change, scale).clamp_(0, 1)


def _drawn(state: "SquareState") -> Tensor:
    """Returns what is drawn for the current step, `(n, size)`."""
    ahead = (state.step - state.first)[:, None, None]
    return state.draws.gather(1, ahead.expand(-1, 1, state.draws.shape[2]))[:, 0]


def _level(state: "SquareState", step: Tensor) -> Tensor:
    return torch.bucketize(step - 1, state.halved_after)


def _choose(first: Tensor, one: Images, other: Images) -> Images:
    """Returns `one` where `first` is 1 and `other` where it is 0, bit for bit.

    On a CPU it is much faster than `where`.
    """
    return torch.lerp(other, one, first.to(other.dtype))


component = Square
