"""CRD (Tian et al. 2020): contrasts embeddings of student and teacher across examples."""

import math

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.tensors.contracts import Labels
from robustbench_kd.tensors.distillation import (
    PENULTIMATE,
    BatchContext,
    MethodOptions,
    Setup,
    Terms,
    feature_shape,
)
from robustbench_kd.tensors.losses import cross_entropy


class Options(MethodOptions):
    """The weights, the embedding and the memory.

    Needs features of student and teacher, as `hint` does. Defaults are those of RepDistiller
    (`train_student.py`, commit 7fd6eff, `crd/`): weights 1 and 0.8, 128 dimensions, 16,384
    negatives of other classes, temperature 0.07, momentum 0.5, penultimate features. Ojha et al.
    2023 use 0.1, temperature 0.1 and 32 negatives on MNIST. Negatives are drawn with replacement,
    where RepDistiller repeats none if there are enough.
    """

    label_weight: NonNegativeFloat = 1.0
    contrast_weight: NonNegativeFloat = 0.8
    dimensions: PositiveInt = 128
    negatives: PositiveInt = 16_384
    temperature: PositiveFloat = 0.07
    momentum: float = Field(default=0.5, ge=0, lt=1)
    student_layer: str = PENULTIMATE
    teacher_layer: str = PENULTIMATE


class Memory(nn.Module):
    """Two embeddings, the last embeddings of all training examples, and the scale of the scores.

    `student` and `teacher` are unit vectors `(rows, dimensions)`; `log_scales` are the logarithms
    of the two constants that are estimated on the first batch, NaN before it. Rows are sorted by
    class in `order`, where those of a class begin at `first` and number `count`.
    """

    def __init__(self, inputs: tuple[int, int], labels: Labels, dimensions: int) -> None:
        super().__init__()
        self.embed_student = nn.Linear(inputs[0], dimensions)
        self.embed_teacher = nn.Linear(inputs[1], dimensions)
        for name in ("student", "teacher"):
            self.register_buffer(name, functional.normalize(torch.randn(len(labels), dimensions)))
        self.register_buffer("log_scales", torch.full((2,), torch.nan))
        count = labels.cpu().bincount()
        if len(labels) == int(count.max()):
            raise UsageError(
                "contrastive distillation needs examples of at least two classes, got one"
            )
        self.register_buffer("order", labels.cpu().argsort(stable=True))
        self.register_buffer("count", count)
        self.register_buffer("first", count.cumsum(dim=0) - count)
        self.student: Tensor
        self.teacher: Tensor
        self.log_scales: Tensor
        self.order: Tensor
        self.count: Tensor
        self.first: Tensor

    def others(self, labels: Labels, size: int, generator: torch.Generator) -> Tensor:
        """Returns rows of other classes, `(n, size)`, each drawn uniformly."""
        room = (len(self.order) - self.count[labels])[:, None]
        drawn = torch.rand(
            len(labels), size, generator=generator, device=generator.device, dtype=torch.float64
        )
        place = (drawn.to(room.device) * room).long().clamp(max=room - 1)
        return self.order[
            torch.where(
                place < self.first[labels][:, None], place, place + self.count[labels][:, None]
            )
        ]

    @torch.no_grad()
    def remember(self, rows: Tensor, student: Tensor, teacher: Tensor, momentum: float) -> None:
        """Moves the stored embeddings of some rows towards new ones, and back onto the sphere."""
        for memory, fresh in ((self.student, student), (self.teacher, teacher)):
            memory[rows] = functional.normalize(torch.lerp(fresh, memory[rows], momentum))


def prepare(setup: Setup, options: Options) -> nn.Module:
    """Returns the embeddings and the memory, which holds random directions at first."""
    student = feature_shape(setup.student, setup.images, options.student_layer).numel()
    teacher = feature_shape(setup.teachers[0], setup.images, options.teacher_layer).numel()
    return Memory((student, teacher), setup.labels, options.dimensions).to(setup.images.device)


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns CE(S(x), y) and the contrast with student and with teacher as anchor, weighted.

    Source: arXiv 1910.10699. Scores are compared with the memory as it was before the batch, which
    then moves towards the batch.
    """
    memory = context.prepared(Memory)
    features = context.student.features(context.images, options.student_layer)
    expected = context.teacher.features(context.images, options.teacher_layer)
    student = functional.normalize(memory.embed_student(features.flatten(1)))
    teacher = functional.normalize(memory.embed_teacher(expected.flatten(1)))
    negatives = memory.others(context.labels, options.negatives, context.generator)
    rows = torch.cat([context.rows[:, None], negatives], dim=1)
    scores = [
        torch.einsum("nkd,nd->nk", bank[rows], anchor) / options.temperature
        for bank, anchor in ((memory.teacher, student), (memory.student, teacher))
    ]
    _estimate_scales(memory, scores)
    contrasts = [
        contrast(own - scale, len(memory.order))
        for own, scale in zip(scores, memory.log_scales, strict=True)
    ]
    memory.remember(context.rows, student, teacher, options.momentum)
    return {
        "labels": options.label_weight
        * cross_entropy(context.student(context.images), context.labels).mean(),
        "contrast": options.contrast_weight * sum(contrasts, start=torch.zeros_like(contrasts[0])),
    }


def contrast(scores: Tensor, rows: int) -> Tensor:
    """Returns -log h_0 - sum_j log(1 - h_j), mean over the batch, with h = e^s / (e^s + N / M).

    `scores` `(n, 1 + N)` are log-scores with the positive first, M is the number of training
    examples.
    """
    odds = scores - math.log((scores.shape[1] - 1) / rows)
    return (functional.softplus(-odds[:, 0]) + functional.softplus(odds[:, 1:]).sum(dim=1)).mean()


@torch.no_grad()
def _estimate_scales(memory: Memory, scores: list[Tensor]) -> None:
    """Sets each constant Z to the mean of e^s over the first batch, times M."""
    if bool(memory.log_scales.isnan().any()):
        means = [own.flatten().logsumexp(dim=0) - math.log(own.numel()) for own in scores]
        memory.log_scales.copy_(torch.stack(means) + math.log(len(memory.order)))
