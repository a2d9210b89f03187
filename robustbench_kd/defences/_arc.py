"""ARC: attacks the members of a randomized ensemble one after the other, and keeps what lowers the expected accuracy.

Source: Dbouk and Shanbhag 2022 (arXiv 2206.06737), "Adversarial vulnerability of randomized
ensembles"; `attack.py` of hsndbk4/ARC at 2f34396.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Norm
from robustbench_kd.defences._arguments import require_positive, require_whole
from robustbench_kd.defences._surfaces import Alone
from robustbench_kd.tensors.attack import per_row
from robustbench_kd.tensors.contracts import Images, Labels
from robustbench_kd.tensors.defence import Answer, Key, Mixture
from robustbench_kd.tensors.geometry import distance, project, steepest
from robustbench_kd.tensors.hyperplane import dual_length
from robustbench_kd.tensors.keyed_random import normal, uniform

_STEP = {Norm.LINF: 1.0, Norm.L2: 0.25}  # in radii: 8/255 of 8/255, 32/255 of 128/255
_MARGIN = 0.05  # by how much a step goes over the boundary, in radii
_TINY = 1e-10


class Arc:
    """Rounds in which each member, the heaviest first, is pushed over its nearest boundary.

    A member is taken as linear at the point that the round has reached. Its push is so long that it
    crosses the boundary although the sum of all pushes is then shortened to one step, and it is
    kept where the expected accuracy, exact over all members, does not rise. Gradients of the mean
    loss, which members with opposite needs cancel, play no part.

    Four things differ from the authors' code. The length of a push takes the boundary's distance
    from where the round began. Theirs puts the distance from the point reached in its place, and so
    can miss a linear member within reach that comes after one out of reach. Of more than five
    classes only the nearest few are considered, as theirs does on CIFAR-100 alone. An image that
    every member gets wrong is left alone. The random start is the same offset for every image, and
    is taken only where it does not raise the expected accuracy.

    Args:
        model: The ensemble.
        norm: `linf` or `l2`.
        eps: The radius.
        seed: Names the random start; nothing else is random.
        rounds: How often each member has its turn: K in the paper.
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
        self._norm, self._eps, self._seed = Norm(norm), eps, seed
        if self._norm is Norm.L1:
            raise UsageError(
                "expected linf or l2 for ARC, got l1: attack the surfaces of the ensemble"
            )
        self._step = _STEP[self._norm] * eps if step is None else step
        require_positive("step", self._step)
        self._model, self._stand_ins = model, stand_ins
        self._rounds, self._runners_up, self._random_start = rounds, runners_up, random_start

    @torch.no_grad()
    def __call__(self, images: Images, labels: Labels) -> Images:
        """Returns the points of least expected accuracy that were found, `(n, c, h, w)` in the ball and the box."""
        points, accuracy = images.clone(), self._accuracy(images, labels)
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
        """Returns the points after every member had its turn, and the expected accuracy there."""
        offset = torch.zeros_like(points)
        for answer in self._heaviest_first():
            trial = self._pushed(answer, points, offset)
            found = self._accuracy(self._inside(points + trial, images), labels)
            offset = torch.where(per_row(found <= accuracy, offset), trial, offset)
            accuracy = torch.minimum(found, accuracy)
        return self._inside(points + offset, images), accuracy

    def _pushed(self, answer: Answer, points: Images, offset: Tensor) -> Tensor:
        """Returns the offset, of the length of a step, that should cross the nearest boundary of a member as well."""
        away, slope = self._boundary(answer, points + offset)
        done = -(slope * offset).flatten(1).sum(dim=1) / self._length(slope)
        # The sum is shortened to the length of a step: so long a push crosses the boundary even
        # then.
        needed = self._step * away / (self._step - done - away) + _MARGIN * self._eps
        push = torch.where(done + away < self._step, needed, self._step)
        pushed = offset - per_row(push, offset) * steepest(slope, self._norm)
        size = distance(pushed, torch.zeros_like(pushed), self._norm) + _TINY
        return self._step * pushed / per_row(size, pushed)

    def _boundary(self, answer: Answer, points: Images) -> tuple[Tensor, Tensor]:
        """Returns how far away the nearest boundary of the linearised member is, `(n,)`, and the slope down to it.

        The slope is that of the gap between the predicted class and the next; zero where nothing
        depends on the points.
        """
        nearest, slope = points.new_full((len(points),), torch.inf), torch.zeros_like(points)
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            gaps = self._gaps(answer, points)
            for gap in gaps.unbind(dim=1) if gaps.requires_grad else ():
                (found,) = torch.autograd.grad(gap.sum(), points, retain_graph=True)
                away = gap.detach() / self._length(found)
                closer = away < nearest
                nearest = torch.where(closer, away, nearest)
                slope = torch.where(per_row(closer, found), found, slope)
        return nearest, slope

    def _gaps(self, answer: Answer, points: Images) -> Tensor:
        """Returns by how much the largest logit leads each of the next, `(n, runners-up)`."""
        name = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        logits = answer(points, Key(self._seed, "arc", ids=name, draw=name))
        top = logits.topk(min(self._runners_up + 1, logits.shape[1]), dim=1).values
        return top[:, :1] - top[:, 1:]

    def _heaviest_first(self) -> list[Answer]:
        answers = self._stand_ins or [Alone(member) for member in self._model.members()]
        return [
            answers[index]
            for index in self._model.weights.argsort(descending=True, stable=True).tolist()
        ]

    def _accuracy(self, points: Images, labels: Labels) -> Tensor:
        """Returns the expected accuracy, `(n,)`; exact in float64, so that equals are equal in every batch."""
        right = torch.stack(
            [member(points).argmax(dim=1) == labels for member in self._model.members()]
        )
        return (self._model.weights.double()[:, None] * right).sum(dim=0)

    def _start(self, images: Images, accuracy: Tensor, labels: Labels) -> tuple[Images, Tensor]:
        """Returns the random point where it is no worse for the attacker, and the expected accuracy there."""
        name, size = torch.zeros(1, dtype=torch.int64, device=images.device), images[0].numel()
        if self._norm is Norm.LINF:
            unit = 2 * uniform(self._seed, "arc", name, name, 0, size) - 1
        else:
            share = uniform(self._seed, "arc-share", name, name, 0, 1)
            unit = share * steepest(normal(self._seed, "arc", name, name, 0, size), self._norm)
        points = self._inside(
            images + self._eps * unit.to(images.dtype).view(images[:1].shape), images
        )
        found = self._accuracy(points, labels)
        chosen = torch.where(per_row(found <= accuracy, images), points, images)
        return chosen, torch.minimum(found, accuracy)

    def _length(self, slope: Tensor) -> Tensor:
        return dual_length(slope.flatten(1), self._norm) + _TINY

    def _inside(self, points: Images, images: Images) -> Images:
        return project(points, images, self._eps, self._norm)
