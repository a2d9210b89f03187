"""Plain projected gradient descent on the cross-entropy: a reference, not part of AutoAttack.

Source: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", section
2.1.
"""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Attack, Rows, Shared
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.geometry import project, steepest
from robustbench_kd.tensors.keyed_random import normal, uniform
from robustbench_kd.tensors.losses import cross_entropy

VARIANTS: dict[str, dict[str, int]] = {"pgd": {}}

_STREAM = "pgd"


@dataclass(frozen=True)
class PgdState:
    """The clean image and the asked point of each row; all steps have one size."""

    centre: Images
    labels: Labels
    point: Images
    threat: Shared[Threat]
    step_size: Shared[float]

    def ask(self) -> Images:
        """Returns the start points, then every iterate."""
        return self.point

    def objective(self, logits: Logits) -> Tensor:
        """Returns the cross-entropy, `(1, n)`."""
        return cross_entropy(logits, self.labels)[None]

    def tell(self, logits: Logits, values: Tensor, gradient: Tensor | None) -> Self:
        """Returns the state after one step; the last point has no gradient and no step."""
        if gradient is None:
            return self

        moved = self.point + self.step_size * steepest(gradient[0], self.threat.norm)
        point = project(moved, self.centre, self.threat.eps, self.threat.norm)
        return replace(self, point=point)


@dataclass(frozen=True, kw_only=True)
class Pgd(Attack):
    """Steps of one size along the sign of the gradient (linf) or along the gradient (l2).

    Args:
        restarts: Restarts of an example, each from its own random point.
        steps: Steps of a restart, which evaluates one point more.
        reach: Length of all steps together, as a multiple of the radius.

    >>> Pgd(restarts=3).restart_count(Norm.L2, 10)
    3
    """

    restarts: int = 1
    steps: int = 40
    reach: float = 2.5

    def restart_count(self, norm: Norm, classes: int) -> int:
        """Returns the number of restarts."""
        return self.restarts

    def schedule(self, norm: Norm) -> tuple[bool, ...]:
        """Returns that every point but the last wants a gradient."""
        return (*(True,) * self.steps, False)

    def start_points(self, rows: Rows, threat: Threat, seed: int) -> Images:
        """Returns points drawn uniformly from the ball and clipped to the box.

        They are keyed by seed, example and restart. Raises `UsageError` for l1, where plain steps
        make little progress.
        """
        if threat.norm is Norm.L1:
            raise UsageError(
                "expected linf or l2 for pgd, got l1: use apgd-ce, whose l1 steps are sparse"
            )

        unit = _in_unit_ball(rows, threat.norm, seed).to(rows.images.dtype).view_as(rows.images)
        return project(rows.images + threat.eps * unit, rows.images, threat.eps, threat.norm)

    def begin(self, rows: Rows, threat: Threat, points: Images, seed: int) -> PgdState:
        """Returns the state of restarts that begin at the given points."""
        step_size = self.reach * threat.eps / self.steps
        return PgdState(rows.images, rows.labels, points, threat, step_size)


def _in_unit_ball(rows: Rows, norm: Norm, seed: int) -> Tensor:
    """Returns numbers `(n, pixels)`, uniform in the unit ball of the norm."""
    pixels = rows.images.flatten(1).shape[1]
    if norm is Norm.LINF:
        return 2 * uniform(seed, _STREAM, rows.ids, rows.restart, 0, pixels) - 1

    direction = steepest(normal(seed, _STREAM, rows.ids, rows.restart, 0, pixels), norm)
    return direction * uniform(seed, _STREAM, rows.ids, rows.restart, 1, 1) ** (1 / pixels)


component = Pgd
