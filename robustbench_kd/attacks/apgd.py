"""Auto-PGD on the cross-entropy, the DLR loss or the targeted DLR loss, as in AutoAttack, or on the margin.

Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks", section 3; for l1 Croce and Hein 2021, "Mind the box", section 4;
`autopgd_base.py` of fra31/auto-attack at a392200. From the same start point the iterates are
AutoAttack's. Two things differ: the last point of a run costs no backward pass, and the random
numbers belong to the example instead of the batch.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustbench_kd.attacks import _apgd_l1, _apgd_lp
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors import losses
from robustbench_kd.tensors.attack import Rows, per_row
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.geometry import project, steepest
from robustbench_kd.tensors.keyed_random import normal, uniform

VARIANTS = {
    "apgd-ce": {"loss": "ce"},
    "apgd-margin": {"loss": "margin"},
    "apgd-dlr": {"loss": "dlr"},
    "apgd-t": {"loss": "targeted-dlr"},
}

State = _apgd_lp.LpPath | _apgd_l1.L1Path

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Apgd:
    """Projected gradient ascent whose steps adapt to the progress of each row.

    Args:
        loss: What to maximise. `margin`, which is no part of AutoAttack, stands for minus the
            margin (Carlini and Wagner 2017, f6 without its cut at zero); two classes are enough for
            it.
        restarts: Jobs of an example, each from its own random start; the targeted loss counts
            `targets` instead.
        targets: Jobs of an example under the targeted loss: job k aims at the class with the (k +
            2)-th largest logit of the clean image. Any wrong class is a success.
        steps: Steps of a job, which evaluates one point more, or three more under `large_radius`.
        large_radius: Whether l1 spends 30, 30 and 40 % of the steps at 3, 2 and 1 times the radius,
            each time from the best point so far. The other norms take no notice.

    >>> Apgd(loss="targeted-dlr").jobs(Norm.LINF, 10)
    9
    """

    loss: Literal["ce", "margin", "dlr", "targeted-dlr"]
    restarts: int = 1
    targets: int = 9
    steps: int = 100
    large_radius: bool = False

    def jobs(self, norm: Norm, classes: int) -> int:  # noqa: ARG002  # the contract has it, the budget does not need it
        """Returns the number of restarts or of targets, which are at most `classes - 1`."""
        return min(self.targets, classes - 1) if self.loss == "targeted-dlr" else self.restarts

    def schedule(self, norm: Norm) -> tuple[bool, ...]:
        """Returns that all points are differentiated but the last of a run or stage."""
        stages = (
            _apgd_l1.lengths(self.steps) if norm is Norm.L1 and self.large_radius else (self.steps,)
        )
        return tuple(step < steps for steps in stages for step in range(steps + 1))

    def start(self, rows: Rows, threat: Threat, seed: int) -> State:
        """Returns the state of fresh jobs; raises `UsageError` where the loss needs more classes."""
        return self.begin(rows, threat, self.start_points(rows, threat, seed))

    def start_points(self, rows: Rows, threat: Threat, seed: int) -> Images:
        """Returns random points in the ball and the box, keyed by seed, loss, example and job.

        For linf uniform noise is stretched until its largest entry is the radius, for l2 Gaussian
        noise is scaled to the radius, for l1 it is projected.
        """
        draw = uniform if threat.norm is Norm.LINF else normal
        size = rows.images.flatten(1).shape[1]
        noise = draw(seed, f"apgd-{self.loss}", rows.ids, rows.job, 0, size).view_as(rows.images)
        offset = _offset(noise.to(rows.images.dtype), threat)
        widest = _apgd_l1.STAGES if threat.norm is Norm.L1 and self.large_radius else 1
        return project(rows.images + offset, rows.images, widest * threat.eps, threat.norm)

    def begin(self, rows: Rows, threat: Threat, points: Images) -> State:
        """Returns the state of fresh jobs that start from the given points; raises like `start`."""
        # Refuses too few classes before a pass is spent.
        self._loss(rows.logits, rows.labels, rows.labels)
        targets = _targets(rows) if self.loss == "targeted-dlr" else rows.labels
        if threat.norm is Norm.L1:
            return _apgd_l1.begin(
                rows, targets, threat, points, self.steps, large_radius=self.large_radius
            )
        return _apgd_lp.begin(rows, targets, threat, points, self.steps)

    def ask(self, state: State) -> Images:
        """Returns the start points, then every iterate."""
        return state.point

    def objective(self, state: State, logits: Logits) -> Tensor:
        """Returns the loss to be maximised, `(1, n)`."""
        return self._loss(logits, state.labels, state.targets)[None]

    def tell(self, state: State, logits: Logits, values: Tensor, gradient: Tensor | None) -> State:  # noqa: ARG002  # the loss says it all
        """Returns the state after one step."""
        return state.advance(
            values[0], torch.zeros_like(state.point) if gradient is None else gradient[0]
        )

    def _loss(self, logits: Logits, labels: Labels, targets: Labels) -> Tensor:
        if self.loss == "ce":
            return losses.cross_entropy(logits, labels)
        if self.loss == "margin":
            return -losses.margin(logits, labels)
        if self.loss == "dlr":
            return losses.dlr(logits, labels)
        return losses.targeted_dlr(logits, labels, targets)


def _offset(noise: Tensor, threat: Threat) -> Tensor:
    if threat.norm is Norm.L1:
        return noise
    if threat.norm is Norm.L2:
        return threat.eps * steepest(noise, Norm.L2)
    centred = 2 * noise - 1
    return threat.eps * centred / (per_row(centred.abs().flatten(1).amax(dim=1), noise) + _TINY)


def _targets(rows: Rows) -> Labels:
    """Returns the class with the (job + 2)-th largest clean logit; of equal logits the later class comes first."""
    ranked = rows.logits.sort(dim=1, stable=True).indices
    return ranked.gather(1, ranked.shape[1] - 2 - rows.job[:, None]).squeeze(1)


component = Apgd
