"""ARD (Goldblum et al. 2020): the teacher's clean answer is the target on adversarial images."""

from functools import partial

from pydantic import Field, PositiveFloat

from robustbench_kd.distill._divergence import Reduction, divergence
from robustbench_kd.tensors.distillation import (
    BatchContext,
    MethodOptions,
    Objective,
    Terms,
    labelled,
)
from robustbench_kd.tensors.losses import cross_entropy


class Options(MethodOptions):
    """The weight of the teacher, the temperature of both networks, and the scale of the divergence.

    Defaults are those of goldblum/AdversariallyRobustDistillation `main.py`: 1, 30 and
    `elementmean`. The code of IGDM has temperature 1 and `batchmean`.
    """

    teacher_weight: float = Field(default=1.0, ge=0, le=1)
    temperature: PositiveFloat = 30.0
    reduction: Reduction = "elementmean"


def inner(context: BatchContext, options: Options) -> Objective:
    """Returns CE(S(x'), y)."""
    return partial(labelled, context.labels)


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns a T^2 KL(T(x) / T || S(x') / T) + (1 - a) CE(S(x), y); arXiv 1905.09747.

    The clean images pass through the student only where the second term counts.
    """
    target, logits = context.teacher(context.images), context.student(context.attacked)
    taught = divergence(
        target, logits, temperature=options.temperature, reduction=options.reduction
    )
    terms = {"teacher": options.teacher_weight * taught}
    if options.teacher_weight < 1:
        clean = cross_entropy(context.student(context.images), context.labels).mean()
        terms["labels"] = (1 - options.teacher_weight) * clean
    return terms
