"""Short attacks on a sample, for the checks that judge attacks by their traces."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Attack, AttackState, Rows, take
from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.probe import Ask, Probe, differentiated

_ROUNDS = 100  # of random points, one of each kind in each
_WIDER = (2, 4)


@dataclass(frozen=True, eq=False)
class Trace:
    """What an attack met on its way.

    `rows` `(n,)` are the attacked rows of the sample, `losses` `(points, n)` the objective, NaN
    once a row has left, and `wrong` `(points, n)` tells which points are misclassified.
    """

    rows: Tensor
    losses: Tensor
    wrong: Tensor

    @property
    def broken(self) -> Tensor:
        """The rows of which some point is misclassified."""
        return self.rows[self.wrong.any(dim=0)]

    @property
    def standing(self) -> Tensor:
        """The other rows."""
        return self.rows[~self.wrong.any(dim=0)]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShortAttacks:
    """Attacks on a sample, each of which runs when it is first asked for. All raise `NoGradientError`.

    Args:
        sample: What is attacked.
        plain: Takes a few steps of one size.
        brief: Takes a few steps that adapt.
        thorough: Takes as many steps as usual.
        longer: Takes twice as many.
        parts: What the defence declares in its own place, by name, and the run itself does not
            attack.
    """

    sample: Probe
    plain: Attack
    brief: Attack
    thorough: Attack
    longer: Attack
    parts: Mapping[str, Ask] = field(default_factory=dict)

    @cached_property
    def first(self) -> Trace:
        """The plain attack on all rows; they stay after a success, so that the path shows what followed."""
        return self._follow(self.plain, self.sample.rows, stay=True)

    @cached_property
    def scouted(self) -> Trace:
        """The plain attack on all rows, without the steps after a success."""
        return self._follow(self.plain, self.sample.rows)

    @cached_property
    def second(self) -> Trace:
        """The thorough attack on the rows that the first one left."""
        return self._follow(self.thorough, self.first.standing)

    @property
    def standing(self) -> Tensor:
        """The rows that neither broke."""
        return self.second.standing

    @property
    def broken(self) -> Tensor:
        """The rows that one of them broke."""
        return torch.cat([self.first.broken, self.second.broken])

    @property
    def limit(self) -> float:
        """The radius of a ball around any image that holds the whole box."""
        pixels = self.sample.images[0].numel()
        return float(
            pixels ** {Norm.LINF: 0.0, Norm.L2: 0.5, Norm.L1: 1.0}[self.sample.threat.norm]
        )

    @cached_property
    def prolonged(self) -> Trace:
        """The thorough attack with twice the steps, on the standing rows."""
        return self._follow(self.longer, self.standing)

    @cached_property
    def repeated(self) -> Trace:
        """The thorough attack from another start, on the standing rows."""
        return self._follow(self.thorough, self.standing, restart=1)

    @cached_property
    def widened(self) -> dict[float, Trace]:
        """Brief attacks from the clean images, on all rows, at 2 and 4 times the radius and without limit, by radius."""
        sample = self.sample
        radii = [radius for factor in _WIDER if (radius := factor * sample.threat.eps) < self.limit]
        return {
            radius: self._follow(
                self.brief, sample.rows, threat=replace(sample.threat, eps=radius), centred=True
            )
            for radius in (*radii, self.limit)
        }

    @cached_property
    def unlucky(self) -> Tensor:
        """The standing rows of which some random point is misclassified."""
        left = self.standing
        for turn in range(_ROUNDS):
            for points in (
                partial(self.sample.nearby, "noise", 1),
                partial(self.sample.corners, "noise"),
            ):
                left = self._right(points(turn=turn, rows=left), left) if len(left) else left
        return self.standing[~torch.isin(self.standing, left)]

    @cached_property
    def transferred(self) -> dict[str, Tensor]:
        """The standing rows that an attack on a part breaks, by the part's name; judged on the defence itself."""
        return {
            name: self._follow(self.brief, self.standing, part=part).broken
            for name, part in self.parts.items()
        }

    def _right(self, points: Images, rows: Tensor) -> Tensor:
        """Returns the rows whose points are classified rightly."""
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

        It begins at a random start, or at the clean images if it is `centred`, and searches on the
        `part` of that name in place of the defence.
        """
        sample = self.sample
        threat = threat or sample.threat
        schedule = attack.schedule(threat.norm)
        losses = sample.logits.new_full((len(schedule), len(rows)), torch.nan)
        wrong = torch.zeros_like(losses, dtype=torch.bool)
        if not len(rows):
            return Trace(rows, losses, wrong)

        ask = part or sample.answer
        state = self._begun(attack, rows, threat, restart, centred=centred)
        left = torch.arange(len(rows), device=rows.device)
        for step, wants_gradient in enumerate(schedule):
            points = state.ask()
            logits, values, gradient = _evaluated(
                state, points, ask, rows[left], wants_gradient=wants_gradient
            )
            judged = sample.ask(points, rows[left]) if part else logits
            wrong[step, left] = judged.argmax(dim=1) != sample.labels[rows[left]]
            losses[step, left] = values[0]

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
