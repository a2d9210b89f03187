"""SAAD (Lee and Chung 2026): examples with an uncertain teacher count more."""

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from robustbench_kd.distill._gradients import Ramp, gradient_match, ramp
from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.distillation import BatchContext, MethodOptions, Objective, Terms
from robustbench_kd.tensors.losses import kl_divergence

VARIANTS: dict[str, dict[str, object]] = {"saad": {}, "saad-c": {"clean_weight": 0.2}}


class Options(MethodOptions):
    """The options: gradient matching, weights from entropies, and the teacher in the attack.

    Defaults are those of HongsinLee/saad (`saad.py` and `args.py`, commit 435e6b2) for CIFAR-10.
    `gradient_weight` is 1 on CIFAR-10, on CIFAR-100 10 in the code and 20 in the paper, on
    Tiny-ImageNet 10. An example counts `entropy_scale` times its entropy less the batch's lowest;
    `entropy_order` is the order of Renyi's entropy, 1 for Shannon's. `clean_weight` is 0, or for
    the variant `saad-c` 0.2 on CIFAR-10 and 0.5 on CIFAR-100 and Tiny-ImageNet. `correction`
    multiplies the first-order change of the teacher's true-class logit in the attack. The authors
    average weights equally from epoch 95.
    """

    gradient_weight: NonNegativeFloat = 1.0
    ramp: Ramp = "linear_total"
    entropy_scale: NonNegativeFloat = 5.0
    entropy_order: PositiveFloat = 1.0
    clean_weight: NonNegativeFloat = 0.0
    correction: NonNegativeFloat = 1.0


def inner(context: BatchContext, options: Options) -> Objective:
    """Returns KL(T~ || S(x')); T~ is T(x) with the true-class logit moved along its gradient at x.

    One backward pass of the teacher per batch takes the place of one per step.
    """
    images, labels = context.images.detach().requires_grad_(), context.labels[:, None]
    logits = context.teacher.through(images)
    (slope,) = torch.autograd.grad(logits.gather(1, labels).sum(), images)
    target = logits.detach()

    def apart(points: Images, found: Logits) -> Tensor:
        change = (slope * (points - context.images)).flatten(1).sum(dim=1, keepdim=True)
        return kl_divergence(target.scatter_add(1, labels, options.correction * change), found)

    return apart


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns the means of three terms.

    They are w_i KL(T(x') || S(x')), w_i r KL(D_T || D_S) and b (1 - w_i / max w) KL(T(x) || S(x)).

    Source: arXiv 2512.10275. D is the output difference of `igdm`, r its ramp.
    """
    teacher, student = context.teacher, context.student
    weights = entropy_weights(teacher(context.attacked), options)
    matching = options.gradient_weight * ramp(context.progress, options.ramp)
    terms = {
        "adversarial": (
            weights * kl_divergence(teacher(context.attacked), student(context.attacked))
        ).mean(),
        "gradient": matching * (weights * gradient_match(context)).mean(),
    }
    if options.clean_weight > 0:
        rest = 1 - weights / (weights.max() + 1e-8)
        clean = kl_divergence(teacher(context.images), student(context.images))
        terms["clean"] = options.clean_weight * (rest * clean).mean()
    return terms


def entropy_weights(logits: Logits, options: Options) -> Tensor:
    """Returns what each example counts, `(n,)`, 0 for the one of which the teacher is surest."""
    entropies = entropy(logits, options.entropy_order)
    return options.entropy_scale * (entropies - entropies.min())


def entropy(logits: Logits, order: float) -> Tensor:
    """Returns Renyi's entropy of softmax(logits) in nats, `(n,)`; Shannon's for order 1."""
    known = logits.log_softmax(dim=1)
    if order == 1:
        return -(known.exp() * known).sum(dim=1)
    return (order * known).logsumexp(dim=1) / (1 - order)
