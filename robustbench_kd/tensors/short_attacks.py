"""Short attacks on a sample, for the checks that judge attacks by their traces."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Attack, AttackState, Rows, take
from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.probe import Ask, Probe, differentiated

_ROUNDS = 100  # of random points, one of each kind in each
_WIDER = (2, 4)
_INSIDE = 1e-5  # from the borders of the box, where a clamp in a model has no gradient


@dataclass(frozen=True, eq=False)
class Trace:
    """The points that an attack evaluated.

    `rows` `(n,)` are the attacked rows of the sample, `losses` `(points, n)` the objective, NaN
    once a row has left, and `wrong` `(points, n)` tells which points are misclassified.
    """

    rows: Tensor
    losses: Tensor
    wrong: Tensor

    @property
    def broken(self) -> Tensor:
        """The rows with a misclassified point."""
        return self.rows[self.wrong.any(dim=0)]

    @property
    def survivors(self) -> Tensor:
        """The other rows."""
        return self.rows[~self.wrong.any(dim=0)]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShortAttacks:
    """Attacks on a sample; each runs at its first use. All raise `NoGradientError`.

    Args:
        sample: What is attacked.
        plain: Takes a few steps of one size.
        brief: Takes a few steps that adapt.
        thorough: Takes as many steps as usual.
        longer: Takes twice as many.
        parts: The surfaces that the defence declares and that the run does not attack, by name.
    """

    sample: Probe
    plain: Attack
    brief: Attack
    thorough: Attack
    longer: Attack
    parts: Mapping[str, Ask] = field(default_factory=dict)

    @cached_property
    def first(self) -> Trace:
        """The plain attack on all rows, which go on after a success."""
        return self._follow(self.plain, self.sample.rows, stay=True)

    @cached_property
    def scouted(self) -> Trace:
        """The plain attack on all rows, without the steps after a success."""
        return self._follow(self.plain, self.sample.rows)

    @cached_property
    def second(self) -> Trace:
        """The thorough attack on the survivors of the first one."""
        return self._follow(self.thorough, self.first.survivors)

    @property
    def survivors(self) -> Tensor:
        """The rows that both attacks left."""
        return self.second.survivors

    @property
    def broken(self) -> Tensor:
        """The rows that one of both attacks broke."""
        return torch.cat([self.first.broken, self.second.broken])

    @property
    def limit(self) -> float:
        """The radius of a ball around any image that holds the whole box."""
        pixels = self.sample.images[0].numel()
        exponent = {Norm.LINF: 0.0, Norm.L2: 0.5, Norm.L1: 1.0}[self.sample.threat.norm]
        return float(pixels**exponent)

    @cached_property
    def prolonged(self) -> Trace:
        """The thorough attack with twice the steps, on the survivors."""
        return self._follow(self.longer, self.survivors)

    @cached_property
    def repeated(self) -> Trace:
        """The thorough attack from another start, on the survivors."""
        return self._follow(self.thorough, self.survivors, restart=1)

    @cached_property
    def widened(self) -> dict[float, Trace]:
        """Brief attacks on all rows from the clean images, at larger radii, by radius.

        The radii are 2 and 4 times that of the threat, and the one that holds the whole box.
        """
        sample = self.sample
        wider = [factor * sample.threat.eps for factor in _WIDER]
        traces = {}
        for radius in (*(radius for radius in wider if radius < self.limit), self.limit):
            threat = replace(sample.threat, eps=radius)
            traces[radius] = self._follow(self.brief, sample.rows, threat=threat, centred=True)
        return traces

    def _inside(self, points: Images, rows: Tensor) -> Logits:
        """Answers at points that are pulled off the borders of the box."""
        return self.sample.answer(points * (1 - 2 * _INSIDE) + _INSIDE, rows)

    @cached_property
    def broken_by_noise(self) -> Tensor:
        """The survivors with a misclassified random point."""
        left = self.survivors
        for repeat in range(_ROUNDS):
            if len(left):
                points = self.sample.nearby("noise", 1, repeat=repeat, rows=left)
                left = self._correct(points, left)
            if len(left):
                points = self.sample.corners("noise", repeat=repeat, rows=left)
                left = self._correct(points, left)
        return self.survivors[~torch.isin(self.survivors, left)]

    @cached_property
    def transferred(self) -> dict[str, Tensor]:
        """The survivors that an attack on a surface breaks, by its name.

        The defence itself judges the points.
        """
        return {
            name: self._follow(self.brief, self.survivors, part=part).broken
            for name, part in self.parts.items()
        }

    def on(self, part: Ask) -> Trace:
        """Follows the brief attack on all rows, on a part in place of the defence."""
        return self._follow(self.brief, self.sample.rows, part=part)

    def _correct(self, points: Images, rows: Tensor) -> Tensor:
        """Returns the rows whose points are classified correctly."""
        return rows[self.sample.ask(points, rows).argmax(dim=1) == self.sample.labels[rows]]

    def _follow(
        self,
        attack: Attack,
        rows: Tensor,
        *,
        threat: Threat | None = None,
        restart: int = 0,
        centred: bool = False,
        stay: bool = False,
        part: Ask | None = None,
    ) -> Trace:
        """Follows an attack on rows, which leave once they are broken unless they `stay`.

        It begins at a random start, or at the clean images, off the borders of the box, if it is
        `centred`, and searches on the `part` in place of the defence.
        """
        sample = self.sample
        threat = threat or sample.threat
        schedule = attack.schedule(threat.norm)
        losses = sample.logits.new_full((len(schedule), len(rows)), torch.nan)
        wrong = torch.zeros_like(losses, dtype=torch.bool)
        if not len(rows):
            return Trace(rows, losses, wrong)

        ask = part or (self._inside if centred else sample.answer)
        state = self._begun(attack, rows, threat, restart, centred=centred)
        left = torch.arange(len(rows), device=rows.device)
        for step, wants_gradient in enumerate(schedule):
            points = state.ask()
            logits, values, gradient = _evaluated(
                state, points, ask, rows[left], wants_gradient=wants_gradient
            )
            judged = sample.ask(points, rows[left]) if part else logits
            wrong[step, left] = judged.argmax(dim=1) != sample.labels[rows[left]]
            losses[step, left] = values[0].to(losses.dtype)

            state = state.tell(logits, values, gradient)
            if not stay and bool(wrong[step, left].any()):
                keep = ~wrong[step, left]
                state = take(state, keep)
                left = left[keep]
            if not len(left):
                break

        return Trace(rows, losses, wrong)

    def _begun(
        self, attack: Attack, rows: Tensor, threat: Threat, restart: int, *, centred: bool
    ) -> AttackState:
        sample = self.sample
        images = sample.images[rows]
        fresh = Rows(
            images,
            sample.labels[rows],
            sample.logits[rows],
            sample.ids[rows],
            torch.full_like(rows, restart),
        )
        points = images if centred else attack.start_points(fresh, threat, sample.seed)
        return attack.begin(fresh, threat, points, sample.seed)


def _evaluated(
    state: AttackState, points: Images, ask: Ask, rows: Tensor, *, wants_gradient: bool
) -> tuple[Logits, Tensor, Tensor | None]:
    """Returns the logits, the objective and its gradient at the points that a state asks for."""
    if not wants_gradient:
        with torch.no_grad():
            logits = ask(points, rows)
        return logits, state.objective(logits), None

    logits, values, gradient = differentiated(
        lambda images: ask(images, rows), points, lambda found: state.objective(found)[0]
    )
    finite = gradient.nan_to_num(0, 0, 0)  # points must stay numbers
    return logits, values[None], finite[None]
