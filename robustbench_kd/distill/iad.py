"""IAD (Zhu et al. 2022): the student trusts itself where the teacher fails."""

from functools import partial
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from robustbench_kd.distill._divergence import Reduction, divergence, reduced, softened, trust
from robustbench_kd.tensors.distillation import (
    BatchContext,
    MethodOptions,
    Objective,
    Terms,
    labelled,
)
from robustbench_kd.tensors.losses import cross_entropy

VARIANTS: dict[str, dict[str, object]] = {"iad": {}, "iad2": {"form": "II", "begin": 40}}


class Options(MethodOptions):
    """Which form, from when on the teacher is doubted, and the weights.

    Defaults are those of ZFancy/IAD `IAD-I.py`, and of `IAD-II.py` for the variant `iad2`. An
    example is trusted with softmax(T(x'))_y ^ `beta` once more than `begin` epochs are over (60 for
    form I, 40 for form II; 60 on CIFAR-10 and 80 on CIFAR-100 in
    HongsinLee/why-robust-teachers-fail), and wholly before. Form I weighs the teacher by
    `teacher_weight` and labels of clean images by the rest. Form II has two teachers, a robust one
    (`robust_weight`) and a standard one (`standard_weight`), and labels of adversarial images by
    the rest. The student's own clean answer carries gradient in the authors' code; `detach_self`
    stops it.
    """

    form: Literal["I", "II"] = "I"
    beta: NonNegativeFloat = 0.1
    begin: NonNegativeInt = 60
    temperature: PositiveFloat = 1.0
    teacher_weight: float = Field(default=1.0, ge=0, le=1)
    robust_weight: float = Field(default=0.5, ge=0, le=1)
    standard_weight: float = Field(default=0.25, ge=0, le=1)
    detach_self: bool = False
    reduction: Reduction = "batchmean"

    def teachers(self) -> tuple[str, ...]:
        """Returns one teacher for form I, two for form II."""
        if self.form == "I":
            return ("robust teacher",)
        return ("robust teacher", "standard teacher")


def inner(context: BatchContext, options: Options) -> Objective:
    """Returns CE(S(x'), y)."""
    return partial(labelled, context.labels)


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns the terms of either form; a_i is an example's trust. Source: arXiv 2106.04928.

    I: a [KL(T(x) || S(x')) + (1 - a_i) KL(S(x) || S(x'))] + (1 - a) CE(S(x), y). II: (1 - a1 - a2)
    CE(S(x'), y) + a1 [a_i KL(T(x') || S(x')) + (1 - a_i) KL(S(x) || S(x'))] + a2 KL(T_std(x') ||
    S(x')).
    """
    if options.form == "I":
        return _first(context, options)
    return _second(context, options)


def trusted(context: BatchContext, options: Options) -> Tensor:
    """Returns how far each example's teacher is trusted, `(n,)`.

    The trust is full until `begin` epochs are over.
    """
    if context.progress.epoch <= options.begin:
        return torch.ones_like(context.labels, dtype=context.images.dtype)
    return trust(context.teacher(context.attacked), context.labels, options.beta)


def _first(context: BatchContext, options: Options) -> Terms:
    logits, weight = context.student(context.attacked), options.teacher_weight
    taught = divergence(
        context.teacher(context.images),
        logits,
        temperature=options.temperature,
        reduction=options.reduction,
    )
    terms = {"teacher": weight * taught, "self": weight * _introspection(context, options)}
    if weight < 1:
        terms["labels"] = (1 - weight) * cross_entropy(
            context.student(context.images), context.labels
        ).mean()
    return terms


def _second(context: BatchContext, options: Options) -> Terms:
    logits = context.student(context.attacked)
    robust, standard = (teacher(context.attacked) for teacher in context.teachers)
    taught = trusted(context, options) * softened(robust, logits, options.temperature)
    guided = divergence(
        standard, logits, temperature=options.temperature, reduction=options.reduction
    )
    rest = 1 - options.robust_weight - options.standard_weight
    return {
        "labels": rest * cross_entropy(logits, context.labels).mean(),
        "teacher": options.robust_weight * reduced(taught, logits, options.reduction),
        "self": options.robust_weight * _introspection(context, options),
        "standard": options.standard_weight * guided,
    }


def _introspection(context: BatchContext, options: Options) -> Tensor:
    """Returns the mean of (1 - a_i) KL(S(x) || S(x'))."""
    own, logits = context.student(context.images), context.student(context.attacked)
    doubt = 1 - trusted(context, options)
    return reduced(
        doubt * softened(own.detach() if options.detach_self else own, logits),
        logits,
        options.reduction,
    )
