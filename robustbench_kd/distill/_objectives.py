"""What attacks raise, one value per example."""

from torch import Tensor

from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.losses import cross_entropy, kl_divergence


def labelled(labels: Labels, points: Images, logits: Logits) -> Tensor:  # noqa: ARG001  # an objective may look at points
    """Returns CE(S(x'), y)."""
    return cross_entropy(logits, labels)


def away_from(target: Logits, points: Images, logits: Logits) -> Tensor:  # noqa: ARG001
    """Returns KL(target || S(x')) for a target that stays where it is."""
    return kl_divergence(target, logits)
