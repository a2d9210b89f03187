"""AKD (Maroto et al. 2022): adversarial training on a mixture of labels and teacher answers."""

from functools import partial

from pydantic import Field, PositiveFloat, field_validator

from robustbench_kd.distill._divergence import Reduction, divergence
from robustbench_kd.tensors.distillation import (
    BatchContext,
    MethodOptions,
    Objective,
    Terms,
    labelled,
)
from robustbench_kd.tensors.losses import cross_entropy

VARIANTS: dict[str, dict[str, object]] = {"akd": {}, "akd2": {"weights": (0.5, 0.25)}}


class Options(MethodOptions):
    """What each teacher counts, one weight for each; labels count the rest.

    The mixture is read in the first author's code (javier-maroto/kdmc `src/kdmc/train/akd.py`); its
    published weights are not verified, so that the default 0.5 is ours. The variant `akd2` (Chen et
    al. 2021, as in ZFancy/IAD `AKD2.py`) has a robust teacher with 0.5 and a standard one with
    0.25. Weights of 0 leave plain adversarial training.
    """

    weights: tuple[float, ...] = Field(default=(0.5,), min_length=1, strict=False)
    temperature: PositiveFloat = 1.0
    reduction: Reduction = "batchmean"

    @field_validator("weights")
    @classmethod
    def _leave_a_rest(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if min(weights) < 0 or sum(weights) > 1:
            raise ValueError("expected weights from 0 on that sum to at most 1")
        return weights

    def teachers(self) -> tuple[str, ...]:
        """Returns as many teachers as there are weights."""
        return tuple(f"teacher {number}" for number in range(1, len(self.weights) + 1))


def inner(context: BatchContext, options: Options) -> Objective:
    """Returns CE(S(x'), y)."""
    return partial(labelled, context.labels)


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns (1 - sum w_k) CE(S(x'), y) + sum w_k T^2 KL(T_k(x') / T || S(x') / T).

    Source: arXiv 2203.07159. At temperature 1 and `batchmean` this is the cross-entropy with the
    mixed target, less a constant.
    """
    logits = context.student(context.attacked)
    terms = {"labels": (1 - sum(options.weights)) * cross_entropy(logits, context.labels).mean()}
    for name, weight, teacher in zip(
        options.teachers(), options.weights, context.teachers, strict=True
    ):
        target = teacher(context.attacked)
        terms[name] = weight * divergence(
            target, logits, temperature=options.temperature, reduction=options.reduction
        )
    return terms
