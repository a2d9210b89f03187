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

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Rows, per_row
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.geometry import project
from robustbench_kd.tensors.keyed_random import uniform
from robustbench_kd.tensors.losses import margin

_STREAM = "square"
_TINY = 1e-12
_AHEAD = 32  # steps whose random numbers are drawn at once
# The share of the image that a window covers halves after each of these iterations.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_ORDER = {Norm.L2: 2, Norm.L1: 1}
_DECAY = {Norm.L2: 2, Norm.L1: 4}


@dataclass(frozen=True)
class Windows:
    """The sizes that windows go through, the same for all rows.

    `halved_after` `(9,)` are the iterations that end a size, `sides` `(10,)` the sizes in pixels.
    `bumps` `(10, 2, s + 2, s + 2)` are for l2 and l1 the bump of each size, upright and transposed,
    within zeros.
    """

    halved_after: Tensor
    sides: Tensor
    bumps: Tensor


@dataclass(frozen=True)
class State:
    """Where each row stands: the best point with its margin, the asked point, and how many points were evaluated.

    `draws` `(n, ahead, size)` hold what is drawn for the steps from `first` `(n,)` on: random
    numbers, for linf made into strokes. `left` counts, for all rows, the steps until more are
    drawn.
    """

    images: Images
    labels: Labels
    ids: Tensor
    job: Tensor
    step: Tensor
    margin: Tensor
    best: Images
    point: Images
    draws: Tensor
    first: Tensor
    left: int
    threat: Threat
    seed: int
    windows: Windows


@dataclass(frozen=True, kw_only=True)
class Square:
    """Random search that keeps a change to a square window where it lowers the margin.

    Args:
        queries: Changes that are tried; a job evaluates its first point besides.
        p_init: Share of the image that the first windows cover.
        restarts: Jobs of an example, each with its own random numbers.

    >>> Square().jobs(Norm.LINF, 10)
    1
    """

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1

    def jobs(self, norm: Norm, classes: int) -> int:  # noqa: ARG002  # the contract has them, the budget does not need them
        """Returns the number of restarts."""
        return self.restarts

    def schedule(self, norm: Norm) -> tuple[bool, ...]:  # noqa: ARG002  # the contract has it
        """Returns that no point is differentiated."""
        return (False,) * (self.queries + 1)

    def start(self, rows: Rows, threat: Threat, seed: int) -> State:
        """Returns the state of fresh jobs, whose first points are stripes for linf and a grid of bumps for l2 and l1."""
        fresh = State(
            images=rows.images,
            labels=rows.labels,
            ids=rows.ids,
            job=rows.job,
            step=torch.zeros_like(rows.job),
            margin=torch.full_like(rows.logits[:, 0], torch.inf),
            best=rows.images,
            point=rows.images,
            draws=rows.images.new_zeros(0),
            first=rows.job,
            left=0,
            threat=threat,
            seed=seed,
            windows=_windows(rows.images, threat.norm, self.p_init),
        )
        point = (_stripes if threat.norm is Norm.LINF else _grid)(fresh)
        return _stocked(replace(fresh, point=point), torch.ones_like(rows.job))

    def ask(self, state: State) -> Images:
        """Returns the first points, then the best points with one window changed."""
        return state.point

    def objective(self, state: State, logits: Logits) -> Tensor:
        """Returns minus the margin, `(1, n)`."""
        return -margin(logits, state.labels)[None]

    def tell(self, state: State, logits: Logits, values: Tensor, gradient: Tensor | None) -> State:  # noqa: ARG002  # the margin says it all
        """Returns the state with the asked points kept where they lower the margin, and the next points.

        AutoAttack also keeps any point whose margin is not positive. That is the same, because a
        row leaves its search once the best margin is not positive.
        """
        found = -values[0]
        better = found < state.margin
        moved = replace(
            state,
            step=state.step + 1,
            margin=torch.fmin(found, state.margin),
            best=_choose(per_row(better, state.best), state.point, state.best),
            left=state.left - 1,
        )
        moved = moved if state.left else _stocked(moved, moved.step)
        return replace(
            moved, point=(_recolour if state.threat.norm is Norm.LINF else _transfer)(moved)
        )


def _windows(images: Images, norm: Norm, p_init: float) -> Windows:
    height, width = images.shape[2:]
    sides = [
        _side(p_init / 2**level, height, width, norm) for level in range(len(_HALVED_AFTER) + 1)
    ]
    bumps = images.new_zeros(0)
    if norm is not Norm.LINF:
        bumps = torch.stack(
            [functional.pad(_bumps(side, norm), [1, max(sides) - side + 1] * 2) for side in sides]
        )
    halved_after = torch.tensor(_HALVED_AFTER, device=images.device)
    return Windows(halved_after, torch.tensor(sides, device=images.device), bumps.to(images))


def _side(share: float, height: int, width: int, norm: Norm) -> int:
    """Returns the side in pixels of windows that cover a share of the image; odd for l2 and l1 where the image allows."""
    side = round(math.sqrt(share * height * width))
    side = max(side, 1) if norm is Norm.LINF else max(side, 3) // 2 * 2 + 1
    return min(side, height, width)


def _bumps(side: int, norm: Norm) -> Tensor:
    """Returns a positive bump over a negative one, together of length 1, upright and transposed `(2, side, side)`.

    Each fills half of the square and falls off in square rings around its centre: ring k and all
    within it are raised by 1 / (k + 1)^2 for l2 and 1 / (k + 1)^4 for l1.
    """
    half, line = side // 2, torch.arange(side)
    is_upper = line < half
    centres = torch.where(is_upper, half // 2, half + (side - half) // 2)
    rings = torch.maximum((line - centres).abs()[:, None], (line - half).abs())
    raised = 1 / torch.arange(1, half + 2, dtype=torch.float64) ** _DECAY[norm]
    heights = raised.flip(0).cumsum(0).flip(0)[rings]
    halves = torch.stack([heights * is_upper[:, None], -heights * ~is_upper[:, None]])
    both = functional.normalize(halves.flatten(1), p=_ORDER[norm]).sum(dim=0)
    upright = functional.normalize(both, p=_ORDER[norm], dim=0).view(side, side)
    return torch.stack([upright, upright.T])


def _stripes(state: State) -> Images:
    """Returns the images with every column of every channel at one end of the linf ball."""
    _, channels, _, width = state.images.shape
    signs = _signs(_draw(state, channels * width), state.images).view(-1, channels, 1, width)
    return torch.add(state.images, signs, alpha=state.threat.eps).clamp_(0, 1)


def _strokes(state: State, draws: Tensor, step: Tensor) -> Tensor:
    """Returns what steps `(m,)` paint, from their random numbers `(m, 2 + c)`, `(m, h + w + c)`.

    1 for the lines and columns of one window and 0 for others, and for each channel the end of the
    linf ball.
    """
    height, width = state.images.shape[2:]
    side = state.windows.sides[_level(state, step)]
    rows, columns = _offsets(draws[:, 0], side, height), _offsets(draws[:, 1], side, width)
    lines = [_within(offsets, side, state.images) for offsets in (rows, columns)]
    return torch.cat([*lines, state.threat.eps * _signs(draws[:, 2:], state.images)], dim=1)


def _recolour(state: State) -> Images:
    """Returns the best points with one window at the ends of the linf ball, one end for each channel."""
    channels, height, width = state.images.shape[1:]
    rows, columns, ends = torch.split(_drawn(state), [height, width, channels], dim=1)
    painted = (state.images + ends[:, :, None, None]).clamp_(0, 1)
    return torch.lerp(state.best, painted, rows[:, None, :, None] * columns[:, None, None, :])


def _grid(state: State) -> Images:
    """Returns the images plus a grid of bumps, mostly 5 by 5, with random signs and orientations."""
    n, channels, height, width = state.images.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    draws = _draw(state, down * across * (1 + channels)).view(n, 1, down, across, 1 + channels)
    bumps = _bumps(side, state.threat.norm).to(state.images)[(draws[..., 0] > 0.5).long()]
    signs = _signs(draws[..., 1:], state.images).transpose(1, 4)
    cells = (
        (signs[..., None] * bumps).transpose(3, 4).reshape(n, channels, down * side, across * side)
    )
    above, left = (height - down * side) // 2, (width - across * side) // 2
    below, right = height - down * side - above, width - across * side - left
    return _onto_ball(functional.pad(cells, [left, right, above, below]), state)


def _transfer(state: State) -> Images:
    """Returns the best points with the change of a second window moved to a first one, and all unused radius with it."""
    height, width = state.images.shape[2:]
    draws, level = _drawn(state), _level(state, state.step)
    side = state.windows.sides[level]
    rows, columns = _offsets(draws[:, 0], side, height), _offsets(draws[:, 1], side, width)
    other_rows, other_columns = (
        _offsets(draws[:, 2], side, height),
        _offsets(draws[:, 3], side, width),
    )
    target, source = (
        _window(rows, columns, side, state.images),
        _window(other_rows, other_columns, side, state.images),
    )
    signs = _signs(draws[:, 5:], state.images)[:, :, None, None]
    bump = signs * _bump_at(state.windows.bumps, level, draws[:, 4] > 0.5, rows, columns)

    change, norm = state.best - state.images, state.threat.norm
    moved = change * torch.maximum(target, source)
    old = change * target
    new = bump + old / (_length(old, norm) + _TINY)
    new *= _radius(change, moved, state.threat) / (_length(new, norm) + _TINY)
    return _onto_ball(change - moved + new, state)


def _radius(change: Tensor, moved: Tensor, threat: Threat) -> Tensor:
    """Returns how long the new change of each channel becomes `(n, c, 1, 1)`: what was moved and a share of the rest.

    For l1 what was moved counts once for each channel, as it does in AutoAttack; the projection
    takes it back.
    """
    used, channels = _length(change, threat.norm, (1, 2, 3)), change.shape[1]
    here = _length(moved, threat.norm)
    if threat.norm is Norm.L1:
        return (threat.eps - used).clamp(min=0) + channels * here
    return ((threat.eps**2 - used.square()).clamp(min=0) / channels + here.square()).sqrt()


def _onto_ball(change: Tensor, state: State) -> Images:
    """Returns the images moved by the change, stretched to the radius (l2) or shrunk to it (l1), in the box."""
    eps = state.threat.eps
    if state.threat.norm is Norm.L1:
        return project(state.images + change, state.images, eps, Norm.L1)
    scale = eps / (_length(change, Norm.L2, (1, 2, 3)) + _TINY)
    return torch.addcmul(state.images, change, scale).clamp_(0, 1)


def _length(change: Tensor, norm: Norm, dims: tuple[int, ...] = (2, 3)) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(change, ord=_ORDER[norm], dim=dims, keepdim=True)
    return length


def _draw(state: State, size: int) -> Tensor:
    return uniform(state.seed, _STREAM, state.ids, state.job, state.step, size)


def _stocked(state: State, first: Tensor) -> State:
    """Returns the state with what the steps from `first` on draw; many at once cost little more than one."""
    ids, job = state.ids.repeat_interleave(_AHEAD), state.job.repeat_interleave(_AHEAD)
    steps = (first[:, None] + torch.arange(_AHEAD, device=first.device)).flatten()
    linf = state.threat.norm is Norm.LINF
    draws = uniform(
        state.seed, _STREAM, ids, job, steps, (2 if linf else 5) + state.images.shape[1]
    )
    draws = _strokes(state, draws, steps) if linf else draws
    return replace(state, draws=draws.view(len(first), _AHEAD, -1), first=first, left=_AHEAD - 1)


def _drawn(state: State) -> Tensor:
    """Returns what is drawn for the current step, `(n, size)`."""
    ahead = (state.step - state.first)[:, None, None]
    return state.draws.gather(1, ahead.expand(-1, 1, state.draws.shape[2]))[:, 0]


def _signs(draws: Tensor, like: Tensor) -> Tensor:
    return (draws > 0.5).to(like.dtype) * 2 - 1


def _level(state: State, step: Tensor) -> Tensor:
    return torch.bucketize(step - 1, state.windows.halved_after)


def _offsets(draws: Tensor, side: Tensor, size: int) -> Tensor:
    """Returns where each of `size` lines lies in a random window, `(n, size)`: 0 to side - 1 inside.

    The last position is never drawn, as in AutoAttack, save where the window fills the image.
    """
    corner = (draws * (size - side)).long()
    return torch.arange(size, device=draws.device) - corner[:, None]


def _window(rows: Tensor, columns: Tensor, side: Tensor, like: Tensor) -> Tensor:
    """Returns 1 inside the windows and 0 outside, `(n, 1, h, w)`."""
    rows, columns = (_within(offsets, side, like) for offsets in (rows, columns))
    return rows[:, None, :, None] * columns[:, None, None, :]


def _within(offsets: Tensor, side: Tensor, like: Tensor) -> Tensor:
    """Returns 1 for the lines that a window takes in, 0 for others."""
    return ((offsets >= 0) & (offsets < side[:, None])).to(like.dtype)


def _choose(first: Tensor, one: Images, other: Images) -> Images:
    """Returns `one` where `first` is 1 and `other` where it is 0, bit for bit; on a CPU much faster than `where`."""
    return torch.lerp(other, one, first.to(other.dtype))


def _bump_at(
    bumps: Tensor, level: Tensor, transposed: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """Returns the bump of each row at its place in the image, `(n, 1, h, w)`."""
    outside = bumps.shape[2] - 2
    rows, columns = (offsets.clamp(-1, outside) + 1 for offsets in (rows, columns))
    at = (
        level[:, None, None],
        transposed.long()[:, None, None],
        rows[:, :, None],
        columns[:, None, :],
    )
    return bumps[at][:, None]


component = Square
