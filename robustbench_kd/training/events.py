"""What a training reports while it runs, and its outcome."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One optimiser step; `epoch` and `step` count from 1, `steps` is the number in an epoch.

    `terms` are those of the loss by name, each with its weight already in it.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    terms: dict[str, float]


class Accuracies(NamedTuple):
    """Fractions of the validation examples: correct on clean images, and under PGD.

    A randomized defence is asked once for each image and not attacked, so that `robust`
    is None.
    """

    clean: float
    robust: float | None


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: the mean of the loss and of every term, and the accuracies after it."""

    epoch: int
    epochs: int
    loss: float
    terms: dict[str, float]
    validation: Accuracies


@dataclass(frozen=True)
class Trained:
    """The outcome of a training.

    It holds the selected weights on the CPU, their accuracies, and all epochs. The first epoch is
    1; without any optimisation the best one is 0 and there is no history.
    """

    best_state: dict[str, Tensor]
    best_epoch: int
    validation: Accuracies
    history: tuple[Epoch, ...] = ()


Observer = Callable[[Step | Epoch], None]
