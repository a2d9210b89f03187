"""AdaAD (Huang et al. 2023): the attack looks for points where student and teacher differ most."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from robustbench_kd.distill._divergence import Reduction, divergence, reduced, softened, trust
from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.distillation import BatchContext, MethodOptions, Objective, Terms
from robustbench_kd.tensors.losses import kl_divergence

VARIANTS: dict[str, dict[str, object]] = {
    "adaad": {},
    "adaiad": {"introspective": True, "temperature": 30.0, "reduction": "batchmean"},
}


class Options(MethodOptions):
    """The weight of adversarial images, and whom the student trusts where the teacher fails.

    Defaults are those of boyellow/AdaAD `main.py` (commit fe97c3e) for CIFAR-10: weight 1,
    temperature 1, `elementmean`; its CIFAR-100 code and IGDM's take `batchmean`. The variant
    `adaiad` has temperature 30, `batchmean`, and adds what `iad` does with `beta` 0.1 once more
    than `begin` 60 epochs are over.
    """

    adversarial_weight: float = Field(default=1.0, ge=0, le=1)
    temperature: PositiveFloat = 1.0
    reduction: Reduction = "elementmean"
    introspective: bool = False
    beta: NonNegativeFloat = 0.1
    begin: NonNegativeInt = 60


def inner(context: BatchContext, options: Options) -> Objective:
    """Returns KL(T(x') || S(x')); its gradient flows through both networks."""

    def apart(points: Images, logits: Logits) -> Tensor:
        return kl_divergence(context.teacher.through(points), logits)

    return apart


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns w KL(T(x') || S(x')) + (1 - w) KL(T(x) || S(x)), perhaps with introspection.

    Huang et al., CVPR 2023. The clean images pass through the student only where a term needs them.
    """
    logits, weight = context.student(context.attacked), options.adversarial_weight
    taught = divergence(
        context.teacher(context.attacked),
        logits,
        temperature=options.temperature,
        reduction=options.reduction,
    )
    terms = {"adversarial": weight * taught}
    if weight < 1:
        told, answered = context.teacher(context.images), context.student(context.images)
        clean = divergence(told, answered, reduction=options.reduction)
        terms["clean"] = (1 - weight) * clean
    if options.introspective and context.progress.epoch > options.begin:
        terms["self"] = _introspection(context, options)
    return terms


def _introspection(context: BatchContext, options: Options) -> Tensor:
    logits = context.student(context.attacked)
    doubt = 1 - trust(context.teacher(context.attacked), context.labels, options.beta)
    return reduced(
        doubt * softened(context.student(context.images), logits), logits, options.reduction
    )
