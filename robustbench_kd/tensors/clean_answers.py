"""What a trust check is given of a clean pass: the answers, and the same question put otherwise.

A check of `trust/` that offers `clean(answers: CleanAnswers)` looks at it; every evaluation and
`rkd check` run it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from robustbench_kd.tensors.contracts import Labels, Logits


@dataclass(frozen=True)
class Altered:
    """A change of the images that may explain a low clean accuracy.

    Args:
        kind: Of several changes of one kind only the best is reported.
        name: What is changed, for a person.
        remedy: What to do if it explains the accuracy.
        ask: Returns the predicted classes, int64 `(m,)`, of the changed images of the sample.
    """

    kind: str
    name: str
    remedy: str
    ask: Callable[[], Tensor]


@dataclass(frozen=True)
class CleanAnswers:
    """What a defence answers to clean images.

    Args:
        logits: Mean logits of all images, `(n, outputs)`.
        labels: Their labels, int64 `(n,)`.
        classes: How many classes the data set has.
        sample: The rows, int64 `(m,)`, that are asked again with changed images.
        altered: What may be changed; each costs m passes when it is asked.
    """

    logits: Logits
    labels: Labels
    classes: int
    sample: Tensor
    altered: tuple[Altered, ...] = ()

    @property
    def outputs(self) -> int:
        """How many classes the model tells apart."""
        return self.logits.shape[1]

    @property
    def predictions(self) -> Tensor:
        """The predicted classes, int64 `(n,)`."""
        return self.logits.argmax(dim=1)
