"""PeerAiD (Jung et al. 2024): a peer learns on adversarial images of the student and teaches it."""

from functools import partial

from pydantic import NonNegativeFloat, PositiveFloat
from torch import nn

from robustbench_kd.distill._divergence import Reduction, divergence
from robustbench_kd.tensors.distillation import (
    BatchContext,
    MethodOptions,
    Objective,
    Setup,
    Terms,
    away_from,
    evaluating,
)
from robustbench_kd.tensors.losses import cross_entropy


class Options(MethodOptions):
    """The weights and temperatures of student and peer.

    Defaults are those of jaewonalive/PeerAiD for CIFAR-10 (`training_scripts/resnet18_cifar10.sh`,
    commit 225c167); on CIFAR-100 `peer_student_weight` is 1. The student's answer carries gradient
    in the peer's loss, as in the authors' code; `detach_student` stops it. There is no teacher; the
    peer is a second network of the student's architecture.
    """

    label_weight: NonNegativeFloat = 0.0
    peer_weight: NonNegativeFloat = 1.0
    self_weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 5.0
    peer_label_weight: NonNegativeFloat = 1.0
    peer_student_weight: NonNegativeFloat = 0.1
    peer_temperature: PositiveFloat = 1.0
    detach_student: bool = False
    reduction: Reduction = "elementmean"

    def teachers(self) -> tuple[str, ...]:
        """Returns none."""
        return ()


def prepare(setup: Setup, options: Options) -> nn.Module:
    """Returns the peer."""
    return setup.fresh().to(setup.images.device)


def inner(context: BatchContext, options: Options) -> Objective:
    """Returns KL(P(x) || S(x')), with the peer asked once and in evaluation mode."""
    with evaluating(context.helper):
        target = context.helper(context.images)
    return partial(away_from, target)


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns the student's and the peer's terms; arXiv 2403.06668.

    Student: l1 CE(S(x'), y) + l2 T^2 KL(P(x') || S(x')) + l3 T^2 KL(S(x) || S(x')), with P(x') held
    fixed. Peer: g1 CE(P(x'), y) + g2 KL(S(x') || P(x')).
    """
    peer, student = context.helper(context.attacked), context.student(context.attacked)
    own = partial(
        divergence, logits=student, temperature=options.temperature, reduction=options.reduction
    )
    seen = student.detach() if options.detach_student else student
    returned = divergence(
        seen, peer, temperature=options.peer_temperature, reduction=options.reduction
    )
    return {
        "labels": options.label_weight * cross_entropy(student, context.labels).mean(),
        "peer": options.peer_weight * own(peer.detach()),
        "self": options.self_weight * own(context.student(context.images)),
        "peer-labels": options.peer_label_weight * cross_entropy(peer, context.labels).mean(),
        "peer-student": options.peer_student_weight * returned,
    }
