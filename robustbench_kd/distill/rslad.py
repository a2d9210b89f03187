"""RSLAD (Zi et al. 2021): the teacher's soft labels of clean images replace all hard labels."""

from functools import partial

from pydantic import NonNegativeFloat, PositiveFloat

from robustbench_kd.distill._divergence import Reduction, divergence
from robustbench_kd.tensors.distillation import (
    BatchContext,
    MethodOptions,
    Objective,
    Terms,
    away_from,
)


class Options(MethodOptions):
    """The weights of both terms, and the scale of the divergence.

    Defaults are those of zibojia/RSLAD for CIFAR-10 (commit 5e63842): 5/6, 1/6, temperature 1,
    `elementmean`. Its CIFAR-100 code, and IGDM's RSLAD, multiply `elementmean` by `scale` 10, which
    is a tenth of `batchmean` as for CIFAR-10.
    """

    adversarial_weight: NonNegativeFloat = 5 / 6
    clean_weight: NonNegativeFloat = 1 / 6
    temperature: PositiveFloat = 1.0
    reduction: Reduction = "elementmean"
    scale: PositiveFloat = 1.0


def inner(context: BatchContext, options: Options) -> Objective:
    """Returns KL(T(x) || S(x')), with the teacher asked once."""
    return partial(away_from, context.teacher(context.images))


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns KL(T(x) || S(x')) and KL(T(x) || S(x)), weighted; arXiv 2108.07969."""
    target = context.teacher(context.images)
    measure = partial(
        divergence, target, temperature=options.temperature, reduction=options.reduction
    )
    return {
        "adversarial": options.scale
        * options.adversarial_weight
        * measure(context.student(context.attacked)),
        "clean": options.scale * options.clean_weight * measure(context.student(context.images)),
    }
