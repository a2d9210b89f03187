"""KD (Hinton et al. 2015): labels and the softened outputs of a teacher, on clean images."""

from pydantic import NonNegativeFloat, PositiveFloat

from robustbench_kd.distill._divergence import Reduction, divergence
from robustbench_kd.tensors.distillation import BatchContext, MethodOptions, Terms
from robustbench_kd.tensors.losses import cross_entropy


class Options(MethodOptions):
    """The weights of labels and teacher, and the temperature of both networks.

    Defaults are those of RepDistiller (`train_student.py`, commit 7fd6eff): 0.1, 0.9 and 4. Ojha et
    al. 2023 weigh 0.5 and 0.5 for ResNet-18 on ImageNet, and 0.1 and 0.9 with temperature 8 on
    MNIST.
    """

    label_weight: NonNegativeFloat = 0.1
    teacher_weight: NonNegativeFloat = 0.9
    temperature: PositiveFloat = 4.0
    reduction: Reduction = "batchmean"


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns CE(S(x), y) and T^2 KL(T(x) / T || S(x) / T), weighted.

    Source: arXiv 1503.02531, section 2.
    """
    logits, expected = context.student(context.images), context.teacher(context.images)
    taught = divergence(
        expected, logits, temperature=options.temperature, reduction=options.reduction
    )
    return {
        "labels": options.label_weight * cross_entropy(logits, context.labels).mean(),
        "teacher": options.teacher_weight * taught,
    }
