"""Plain projected gradient descent on the cross-entropy: a yardstick, no part of AutoAttack.

Source: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", section
2.1.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Rows
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.geometry import project, steepest
from robustbench_kd.tensors.keyed_random import normal, uniform
from robustbench_kd.tensors.losses import cross_entropy

VARIANTS: dict[str, dict[str, int]] = {"pgd": {}}

_STREAM = "pgd"


@dataclass(frozen=True)
class State:
    """Where each row stands: the image and the asked point."""

    centre: Images
    labels: Labels
    point: Images
    threat: Threat


@dataclass(frozen=True, kw_only=True)
class Pgd:
    """Steps of one size along the sign of the gradient (linf) or along the gradient (l2).

    Args:
        restarts: Jobs of an example, each from its own random start.
        steps: Steps of a job, which evaluates one point more.
        reach: Length of all steps together, as a multiple of the radius.

    >>> Pgd(restarts=3).jobs(Norm.L2, 10)
    3
    """

    restarts: int = 1
    steps: int = 40
    reach: float = 2.5

    def jobs(self, norm: Norm, classes: int) -> int:  # noqa: ARG002  # the contract has them, the budget does not need them
        """Returns the number of restarts."""
        return self.restarts

    def schedule(self, norm: Norm) -> tuple[bool, ...]:  # noqa: ARG002  # the contract has it
        """Returns that all points are differentiated but the last."""
        return (*(True,) * self.steps, False)

    def start(self, rows: Rows, threat: Threat, seed: int) -> State:
        """Returns the state of fresh jobs; raises `UsageError` for l1, where plain steps make little progress."""
        return self.begin(rows, threat, self.start_points(rows, threat, seed))

    def start_points(self, rows: Rows, threat: Threat, seed: int) -> Images:
        """Returns points drawn uniformly from the ball and clipped to the box, keyed by seed, example and job."""
        if threat.norm is Norm.L1:
            raise UsageError(
                "expected linf or l2 for pgd, got l1: use apgd-ce, whose l1 steps are sparse"
            )
        unit = _in_unit_ball(rows, threat.norm, seed).to(rows.images.dtype).view_as(rows.images)
        return project(rows.images + threat.eps * unit, rows.images, threat.eps, threat.norm)

    def begin(self, rows: Rows, threat: Threat, points: Images) -> State:
        """Returns the state of fresh jobs that start from the given points."""
        return State(rows.images, rows.labels, points, threat)

    def ask(self, state: State) -> Images:
        """Returns the start points, then every iterate."""
        return state.point

    def objective(self, state: State, logits: Logits) -> Tensor:
        """Returns the cross-entropy, `(1, n)`."""
        return cross_entropy(logits, state.labels)[None]

    def tell(self, state: State, logits: Logits, values: Tensor, gradient: Tensor | None) -> State:  # noqa: ARG002  # the step has one size
        """Returns the state after one step; without a gradient the last point was asked, and none follows."""
        if gradient is None:
            return state
        size = self.reach * state.threat.eps / self.steps
        moved = state.point + size * steepest(gradient[0], state.threat.norm)
        point = project(moved, state.centre, state.threat.eps, state.threat.norm)
        return replace(state, point=point)


def _in_unit_ball(rows: Rows, norm: Norm, seed: int) -> Tensor:
    """Returns numbers `(n, pixels)`, uniform in the unit ball of the norm."""
    pixels = rows.images.flatten(1).shape[1]
    if norm is Norm.LINF:
        return 2 * uniform(seed, _STREAM, rows.ids, rows.job, 0, pixels) - 1
    direction = steepest(normal(seed, _STREAM, rows.ids, rows.job, 0, pixels), norm)
    return direction * uniform(seed, _STREAM, rows.ids, rows.job, 1, 1) ** (1 / pixels)


component = Pgd
