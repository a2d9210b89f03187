"""ARC attacks the members of a randomized ensemble in turn to lower the expected accuracy.

Source: Dbouk and Shanbhag 2022 (arXiv 2206.06737), "Adversarial vulnerability of randomized
ensembles"; `attack.py` of hsndbk4/ARC at 2f34396.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Norm
from robustbench_kd.defences._arguments import require_positive, require_whole
from robustbench_kd.defences._surfaces import ModuleAnswer
from robustbench_kd.tensors.attack import per_row
from robustbench_kd.tensors.contracts import Images, Labels
from robustbench_kd.tensors.defence import Answer, Key, Mixture
from robustbench_kd.tensors.geometry import distance, project, steepest
from robustbench_kd.tensors.hyperplane import dual_length
from robustbench_kd.tensors.keyed_random import normal, uniform

_STEP = {Norm.LINF: 1.0, Norm.L2: 0.25}  # in radii: 8/255 of 8/255, 32/255 of 128/255
_MARGIN = 0.05  # by how much a step crosses the boundary, in radii
_TINY = 1e-10


class Arc:
    """Rounds in which each member, the heaviest first, is pushed over its nearest boundary.

    A member is linearised at the point that the round has reached. Its push is so long that the
    point crosses the boundary even after the sum of all pushes is shortened to one step. A push is
    kept if the expected accuracy, exact over all members, does not rise. Gradients of the mean loss
    are not used, because members with opposite gradients cancel each other.

    Four things differ from the authors' code:

    - The length of a push uses the boundary's distance from the start of the round. Theirs uses the
      distance from the point reached, and so can miss a linear member within reach that follows one
      out of reach.
    - Of more than five classes only the nearest few are considered, as theirs does on CIFAR-100
      alone.
    - An image that every member misclassifies is not attacked.
    - The random start is the same offset for every image, and is taken only if it does not raise
      the expected accuracy.

    Args:
        model: The ensemble.
        norm: `linf` or `l2`.
        eps: The radius.
        seed: Names the random start; nothing else is random.
        rounds: How often each member is pushed: K in the paper.
        step: Length of the perturbation of one round; by default `eps` for linf and a quarter of it
            for l2, as published.
        runners_up: Classes, besides the predicted one, whose boundary is considered, by the gap of
            their logits; each costs a backward pass. All of them if there are fewer.
        random_start: Whether to start at a random point of the ball instead of the clean image.
        stand_ins: What is differentiated in place of each member, in their order; the members
            themselves if empty.

    Raises:
        UsageError: If the norm is l1 or an argument is impossible.

    >>> Arc(ensemble, norm="linf", eps=8 / 255, seed=0)(images, labels)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Mixture,
        *,
        norm: str,
        eps: float,
        seed: int,
        rounds: int = 20,
        step: float | None = None,
        runners_up: int = 4,
        random_start: bool = False,
        stand_ins: Sequence[Answer] = (),
    ) -> None:
        require_whole("rounds", rounds, 1)
        require_whole("runners_up", runners_up, 1)
        self._norm = Norm(norm)
        if self._norm is Norm.L1:
            raise UsageError(
                "expected linf or l2 for ARC, got l1: attack the surfaces of the ensemble"
            )
        self._step = _STEP[self._norm] * eps if step is None else step
        require_positive("step", self._step)

        self._model = model
        self._eps = eps
        self._seed = seed
        self._rounds = rounds
        self._runners_up = runners_up
        self._random_start = random_start
        self._stand_ins = stand_ins

    @torch.no_grad()
    def __call__(self, images: Images, labels: Labels) -> Images:
        """Returns the points `(n, c, h, w)` of the least expected accuracy, in ball and box."""
        points = images.clone()
        accuracy = self._accuracy(images, labels)
        if self._random_start:
            points, accuracy = self._start(points, accuracy, labels)

        for _ in range(self._rounds):
            left = accuracy > 0
            if not left.any():
                break
            points[left], accuracy[left] = self._round(
                points[left], accuracy[left], images[left], labels[left]
            )
        return points

    def _round(
        self, points: Images, accuracy: Tensor, images: Images, labels: Labels
    ) -> tuple[Images, Tensor]:
        """Returns the points after a push of every member, and the expected accuracy there."""
        offset = torch.zeros_like(points)
        for answer in self._heaviest_first():
            candidate = self._pushed(answer, points, offset)
            lowered = self._accuracy(self._inside(points + candidate, images), labels)
            offset = torch.where(per_row(lowered <= accuracy, offset), candidate, offset)
            accuracy = torch.minimum(lowered, accuracy)
        return self._inside(points + offset, images), accuracy

    def _pushed(self, answer: Answer, points: Images, offset: Tensor) -> Tensor:
        """Returns the offset of a step's length that should also cross a member's boundary."""
        away, slope = self._boundary(answer, points + offset)
        done = -(slope * offset).flatten(1).sum(dim=1) / self._length(slope)

        # The sum is shortened to the length of a step: a push of this length crosses the boundary
        # even then.
        needed = self._step * away / (self._step - done - away) + _MARGIN * self._eps
        push = torch.where(done + away < self._step, needed, self._step)
        pushed = offset - per_row(push, offset) * steepest(slope, self._norm)
        size = distance(pushed, torch.zeros_like(pushed), self._norm) + _TINY
        return self._step * pushed / per_row(size, pushed)

    def _boundary(self, answer: Answer, points: Images) -> tuple[Tensor, Tensor]:
        """Returns the distance `(n,)` to the nearest boundary of a member, and the slope there.

        The member is linearised. The slope is that of the gap between the predicted class and the
        next one; it is zero if the answer does not depend on the points.
        """
        nearest = points.new_full((len(points),), torch.inf)
        slope = torch.zeros_like(points)
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            gaps = self._gaps(answer, points)
            if not gaps.requires_grad:
                return nearest, slope
            for gap in gaps.unbind(dim=1):
                (gradient,) = torch.autograd.grad(gap.sum(), points, retain_graph=True)
                away = gap.detach() / self._length(gradient)
                closer = away < nearest
                nearest = torch.where(closer, away, nearest)
                slope = torch.where(per_row(closer, gradient), gradient, slope)
        return nearest, slope

    def _gaps(self, answer: Answer, points: Images) -> Tensor:
        """Returns by how much the largest logit exceeds each of the next, `(n, runners-up)`."""
        zeros = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        logits = answer(points, Key(self._seed, "arc", ids=zeros, draw=zeros))
        top = logits.topk(min(self._runners_up + 1, logits.shape[1]), dim=1).values
        return top[:, :1] - top[:, 1:]

    def _heaviest_first(self) -> list[Answer]:
        """Returns the answers of members or their stand-ins, those of large weight first."""
        answers = self._stand_ins or [ModuleAnswer(member) for member in self._model.members()]
        order = self._model.weights.argsort(descending=True, stable=True)
        return [answers[index] for index in order.tolist()]

    def _accuracy(self, points: Images, labels: Labels) -> Tensor:
        """Returns the expected accuracy `(n,)` in float64, so that ties are exact in any batch."""
        correct = torch.stack(
            [member(points).argmax(dim=1) == labels for member in self._model.members()]
        )
        return (self._model.weights.double()[:, None] * correct).sum(dim=0)

    def _start(self, images: Images, accuracy: Tensor, labels: Labels) -> tuple[Images, Tensor]:
        """Returns the start of each image and the expected accuracy there.

        It is a random point if the expected accuracy there is no higher, and the image otherwise.
        """
        name = torch.zeros(1, dtype=torch.int64, device=images.device)
        size = images[0].numel()
        if self._norm is Norm.LINF:
            unit = 2 * uniform(self._seed, "arc", name, name, 0, size) - 1
        else:
            radius = uniform(self._seed, "arc-share", name, name, 0, 1)
            unit = radius * steepest(normal(self._seed, "arc", name, name, 0, size), self._norm)

        offset = self._eps * unit.to(images.dtype).view(images[:1].shape)
        points = self._inside(images + offset, images)
        lowered = self._accuracy(points, labels)
        chosen = torch.where(per_row(lowered <= accuracy, images), points, images)
        return chosen, torch.minimum(lowered, accuracy)

    def _length(self, slope: Tensor) -> Tensor:
        """Returns the dual norm `(n,)` of slopes, a little above 0."""
        return dual_length(slope.flatten(1), self._norm) + _TINY

    def _inside(self, points: Images, images: Images) -> Images:
        return project(points, images, self._eps, self._norm)
