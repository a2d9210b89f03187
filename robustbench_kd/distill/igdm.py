"""IGDM (Lee et al. 2025): an addition that matches input gradients by differences of outputs."""

from pydantic import NonNegativeFloat

from robustbench_kd.distill._divergence import Reduction, reduced
from robustbench_kd.distill._gradients import Ramp, gradient_match, ramp
from robustbench_kd.tensors.distillation import BatchContext, MethodOptions, Terms


class Options(MethodOptions):
    """The final weight, how it is let in, and how far the two points lie from the image.

    The paper searches `alpha` anew for every host, student, data set and teacher (appendix B.2).
    For ResNet-18 on CIFAR-10 with the LTD teacher: ARD and AdaAD 5 (the default), RSLAD 0.9, AKD 7,
    IAD 50, plain adversarial training 60; on CIFAR-100 ARD 50, AdaAD 15, RSLAD 3, IAD 20, AKD 50,
    plain 100. RSLAD's are small because its own term has the scale `elementmean`. `ramp` is
    `linear_total` in the paper and `linear_200` in the code. The code takes `beta` = `gamma` = 1
    and `batchmean`.
    """

    alpha: NonNegativeFloat = 5.0
    ramp: Ramp = "linear_total"
    beta: float = 1.0
    gamma: float = 1.0
    reduction: Reduction = "batchmean"


def term(context: BatchContext, options: Options) -> Terms:
    """Returns alpha r KL(D_T || D_S) with D = f(x + beta d) - f(x - gamma d); arXiv 2312.03286.

    d is the perturbation of the host's attack. The host's answers to x and x' are used again; the
    authors' code for AdaAD passes x' twice. Clean images pass even where the host does not need
    them, as in that code. With several teachers the first one is matched.
    """
    matched = gradient_match(context, beta=options.beta, gamma=options.gamma)
    value = reduced(matched, context.student(context.attacked), options.reduction)
    return {"igdm": options.alpha * ramp(context.progress, options.ramp) * value}
