"""Inductive biases of a convolution and an involution network for a ViT (Ren et al. 2022)."""

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.distill._divergence import Reduction, divergence
from robustbench_kd.tensors.distillation import BatchContext, MethodOptions, Terms


class Options(MethodOptions):
    """The weights of the three tokens, the temperature, and where the student shows its heads.

    Defaults are those of OliverRensu/co-advise (commit 8049918): weights 1, temperature 1,
    `batchmean`, label smoothing 0.1; its mixup, stems and token initialisation are not part of this
    method. Habib et al. (arXiv 2310.00369, LIB-KD) train the same kind of student on stored logits
    of both teachers, but neither its loss nor its code was found: recipes of that name are
    reconstructions, with weights of 1/3 and temperature 4.

    Needs the heads of the student: the output `(n, 3, classes)` of the module `heads_layer`, for
    the class, convolution and involution token in this order, as `vit_tiny` with
    `distillation_tokens=2` has it.
    """

    label_weight: NonNegativeFloat = 1.0
    convolution_weight: NonNegativeFloat = 1.0
    involution_weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 1.0
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    reduction: Reduction = "batchmean"
    heads_layer: str = "heads"

    def teachers(self) -> tuple[str, ...]:
        """Returns the two teachers."""
        return "convolution teacher", "involution teacher"


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns CE of the class head and T^2 KL(teacher || head) of both other heads, weighted.

    Source: arXiv 2106.12378. The teachers may answer from stored logits.
    """
    heads = context.student.features(context.images, options.heads_layer)
    if heads.ndim != 3 or heads.shape[1] != 3:
        raise UsageError(
            f"expected a student with heads (n, 3, classes) in '{options.heads_layer}', got "
            f"{tuple(heads.shape)}: "
            "choose vit_tiny with distillation_tokens=2"
        )
    labelled, convolution, involution = heads.unbind(dim=1)
    weights = (options.convolution_weight, options.involution_weight)
    taught = [
        weight
        * divergence(
            teacher(context.images),
            head,
            temperature=options.temperature,
            reduction=options.reduction,
        )
        for weight, teacher, head in zip(
            weights, context.teachers, (convolution, involution), strict=True
        )
    ]
    labels = functional.cross_entropy(
        labelled, context.labels, label_smoothing=options.label_smoothing
    )
    return {
        "labels": options.label_weight * labels,
        "convolution": taught[0],
        "involution": taught[1],
    }
