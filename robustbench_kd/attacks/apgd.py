"""Auto-PGD on the cross-entropy, the DLR or the targeted DLR loss, as in AutoAttack, or the margin.

Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks", section 3; for l1 Croce and Hein 2021, "Mind the box", section 4;
`autopgd_base.py` of fra31/auto-attack at a392200. From the same start point the iterates are
AutoAttack's. Three things differ: the last point of a run costs no backward pass, and the random
numbers belong to the example instead of the batch. The targets are ranked among the classes other
than the label even where the label is not the best, as for the mean of a mixture.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_kd.attacks import _apgd_l1, _apgd_lp
from robustbench_kd.attacks._apgd_state import ApgdState, Loss, loss
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Attack, Rows, per_row
from robustbench_kd.tensors.contracts import Images, Labels
from robustbench_kd.tensors.geometry import project, steepest
from robustbench_kd.tensors.keyed_random import normal, uniform

VARIANTS = {
    "apgd-ce": {"loss": "ce"},
    "apgd-margin": {"loss": "margin"},
    "apgd-dlr": {"loss": "dlr"},
    "apgd-t": {"loss": "targeted-dlr"},
}

_LEAST_CLASSES: dict[Loss, int] = {"ce": 2, "margin": 2, "dlr": 3, "targeted-dlr": 4}
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Apgd(Attack):
    """Projected gradient ascent whose steps adapt to the progress of each row.

    Args:
        loss: What to maximise. `margin`, which is no part of AutoAttack, stands for minus the
            margin (Carlini and Wagner 2017, f6 without its cut at zero); two classes are enough for
            it.
        restarts: Restarts of an example, each from its own random start; the targeted loss counts
            `targets` instead.
        targets: Restarts of an example under the targeted loss: restart k aims at the wrong class
            with the (k + 1)-th largest logit of the clean image. Any wrong class is a success.
        steps: Steps of a restart, which evaluates one point more, or three more under
            `large_radius`.
        large_radius: Whether l1 spends 30, 30 and 40 % of the steps at 3, 2 and 1 times the radius,
            each time from the best point so far. The other norms ignore it.

    >>> Apgd(loss="targeted-dlr").restart_count(Norm.LINF, 10)
    9
    """

    loss: Loss
    restarts: int = 1
    targets: int = 9
    steps: int = 100
    large_radius: bool = False

    def restart_count(self, norm: Norm, classes: int) -> int:
        """Returns the number of restarts or of targets, which are at most `classes - 1`."""
        if self.loss == "targeted-dlr":
            return min(self.targets, classes - 1)
        return self.restarts

    def schedule(self, norm: Norm) -> tuple[bool, ...]:
        """Returns that every point wants a gradient but the last of a run or phase."""
        phases = _apgd_l1.lengths(self.steps) if self._has_phases(norm) else (self.steps,)
        return tuple(step < steps for steps in phases for step in range(steps + 1))

    def stays_in_ball(self, norm: Norm) -> bool:
        """Returns that every point lies in the ball, unless l1 begins at larger radii."""
        return not self._has_phases(norm)

    def least_classes(self) -> int:
        """Returns the logits that the loss compares (Croce and Hein 2020, section 4)."""
        return _LEAST_CLASSES[self.loss]

    def substitute(self) -> str:
        """Returns the plain DLR loss for the targeted one, which needs one logit more."""
        return "apgd-dlr" if self.loss == "targeted-dlr" else ""

    def start_points(self, rows: Rows, threat: Threat, seed: int) -> Images:
        """Returns random points in the ball and the box, keyed by seed, loss, example and restart.

        For linf uniform noise is stretched until its largest entry is the radius, for l2 Gaussian
        noise is scaled to the radius, for l1 it is projected.
        """
        draw = uniform if threat.norm is Norm.LINF else normal
        pixels = rows.images.flatten(1).shape[1]
        noise = draw(seed, f"apgd-{self.loss}", rows.ids, rows.restart, 0, pixels)
        offset = _offset(noise.view_as(rows.images).to(rows.images.dtype), threat)

        widest = _apgd_l1.PHASES if self._has_phases(threat.norm) else 1
        return project(rows.images + offset, rows.images, widest * threat.eps, threat.norm)

    def begin(self, rows: Rows, threat: Threat, points: Images, seed: int) -> ApgdState:
        """Returns the state of restarts that begin at the given points.

        Raises `UsageError` where the loss needs more classes.
        """
        # The loss refuses too few classes here, before a pass is spent.
        loss(self.loss, rows.logits, rows.labels, rows.labels)
        targets = _targets(rows) if self.loss == "targeted-dlr" else rows.labels

        if threat.norm is not Norm.L1:
            return _apgd_lp.begin(rows, targets, threat, points, loss=self.loss, steps=self.steps)
        return _apgd_l1.begin(
            rows,
            targets,
            threat,
            points,
            loss=self.loss,
            steps=self.steps,
            large_radius=self.large_radius,
        )

    def _has_phases(self, norm: Norm) -> bool:
        return norm is Norm.L1 and self.large_radius


def _offset(noise: Tensor, threat: Threat) -> Tensor:
    if threat.norm is Norm.L1:
        return noise
    if threat.norm is Norm.L2:
        return threat.eps * steepest(noise, Norm.L2)

    centred = 2 * noise - 1
    return threat.eps * centred / (per_row(centred.abs().flatten(1).amax(dim=1), noise) + _TINY)


def _targets(rows: Rows) -> Labels:
    """Returns the class with the (restart + 1)-th largest clean logit among the wrong classes.

    Where logits are equal, the later class comes first.
    """
    label_last = rows.logits.scatter(1, rows.labels[:, None], torch.inf)
    ranked = label_last.sort(dim=1, stable=True).indices
    return ranked.gather(1, ranked.shape[1] - 2 - rows.restart[:, None]).squeeze(1)


component = Apgd
