"""CRDND reconstructed from the abstract of Wang et al. 2023, which is not the method itself.

It denoises soft labels and contrasts features.
"""

from functools import partial
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.distill._divergence import Reduction, divergence_from, reduced
from robustbench_kd.tensors.contracts import Labels, Logits
from robustbench_kd.tensors.distillation import (
    PENULTIMATE,
    BatchContext,
    MethodOptions,
    Objective,
    Setup,
    Terms,
    away_from,
    feature_shape,
    labelled,
)


class Options(MethodOptions):
    """Which parts are on, so that each can be taken away, and their weights.

    No code and no formula of "Adversarial Contrastive Distillation with Adaptive Denoising" (ICASSP
    2023, arXiv 2302.08764) was found: every choice here is ours, on the frame of `rslad`, and
    results say nothing of the paper's method. `denoise` is `tie` (the smallest weight of the label
    that lifts it to a tie with the teacher's wrong class, and `margin` more), `trust` (the share 1
    - p_y ^ `beta`, of every wrong example) or `none`. `contrast_weight` 0 leaves the features
    alone.
    """

    attack: Literal["teacher", "labels"] = "teacher"
    adversarial_weight: NonNegativeFloat = 5 / 6
    clean_weight: NonNegativeFloat = 1 / 6
    denoise: Literal["tie", "trust", "none"] = "tie"
    margin: float = Field(default=0.05, ge=0, le=1)
    beta: NonNegativeFloat = 0.1
    contrast_weight: NonNegativeFloat = 0.1
    contrast_temperature: PositiveFloat = 0.1
    dimensions: PositiveInt = 128
    student_layer: str = PENULTIMATE
    teacher_layer: str = PENULTIMATE
    reduction: Reduction = "elementmean"
    scale: PositiveFloat = 1.0


def prepare(setup: Setup, options: Options) -> nn.Module:
    """Returns a linear head each for the features of student and teacher."""
    shapes = (
        feature_shape(setup.student, setup.images, options.student_layer),
        feature_shape(setup.teachers[0], setup.images, options.teacher_layer),
    )
    heads = [nn.Linear(shape.numel(), options.dimensions) for shape in shapes]
    return nn.ModuleList(heads).to(setup.images.device)


def inner(context: BatchContext, options: Options) -> Objective:
    """Returns KL(T(x) || S(x')) as RSLAD does, or CE(S(x'), y)."""
    if options.attack == "labels":
        return partial(labelled, context.labels)
    if options.contrast_weight > 0:  # features and logits then come from one pass
        context.teacher.features(context.images, options.teacher_layer)
    return partial(away_from, context.teacher(context.images))


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns KL(p || S(x')), KL(p || S(x)) and the contrast of features, weighted.

    `p` is the denoised softmax(T(x)).
    """
    terms: Terms = {}
    if options.contrast_weight > 0:  # before any logits are asked, for the same reason
        terms["contrast"] = options.contrast_weight * _contrast(context, options)
    target = denoised(context.teacher(context.images), context.labels, options)
    for name, weight, images in (
        ("adversarial", options.adversarial_weight, context.attacked),
        ("clean", options.clean_weight, context.images),
    ):
        logits = context.student(images)
        taught = reduced(divergence_from(target, logits), logits, options.reduction)
        terms[name] = options.scale * weight * taught
    return terms


def denoised(logits: Logits, labels: Labels, options: Options) -> Tensor:
    """Returns the teacher's probabilities `(n, classes)`, mixed with the label where wrong.

    With p_max and p_y the probabilities of its class and of the label, the weight c = (p_max - p_y)
    / (1 + p_max - p_y) of the label is the smallest that makes both equal.
    """
    known = logits.softmax(dim=1)
    if options.denoise == "none":
        return known
    right, top = known.gather(1, labels[:, None]), known.max(dim=1, keepdim=True).values
    if options.denoise == "tie":
        label_weight = ((top - right) / (1 + top - right) + options.margin).clamp(max=1)
    else:
        label_weight = 1 - right**options.beta
    wrong = known.argmax(dim=1, keepdim=True) != labels[:, None]
    label_weight = torch.where(wrong, label_weight, 0)
    return (1 - label_weight) * known + label_weight * functional.one_hot(labels, known.shape[1])


def _contrast(context: BatchContext, options: Options) -> Tensor:
    own, others = context.prepared(nn.ModuleList)
    found = own(context.student.features(context.attacked, options.student_layer).flatten(1))
    expected = others(context.teacher.features(context.images, options.teacher_layer).flatten(1))
    scores = (
        functional.normalize(found)
        @ functional.normalize(expected).T
        / options.contrast_temperature
    )
    return contrast(scores, context.labels)


def contrast(scores: Tensor, labels: Labels) -> Tensor:
    """Returns the mean of -log softmax of each example's own score among those of other classes.

    `scores` `(n, n)` compare every student's embedding (row) with every teacher's; those of the
    same class do not count.
    """
    alike = (labels[:, None] == labels) & ~torch.eye(
        len(labels), dtype=torch.bool, device=labels.device
    )
    return -scores.masked_fill(alike, -torch.inf).log_softmax(dim=1).diagonal().mean()
