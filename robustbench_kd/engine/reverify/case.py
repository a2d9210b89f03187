"""A finished run with everything that is known of it, for the checks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rows import DrawRow, ExampleRow
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Dataset, Images
from robustbench_kd.tensors.stored_images import StoredImages

EXACT = 1e-6  # by how much sums and the weights of members may differ
_DOUBT = 1e-3  # the chance that luck alone fails a check of a randomized defence


@dataclass(frozen=True, eq=False)
class Answers:
    """What a defence says of n images, all `(n,)`.

    `wrong` is the fraction of its answers that are wrong, `prediction` the most frequent one.
    `close` marks images on which two classes are so near to each other that rounding could change
    an answer.
    """

    wrong: Tensor
    prediction: Tensor
    close: Tensor


@dataclass(frozen=True, eq=False)
class Case:
    """A run with its files, and the answers of the defence that was asked again.

    Args:
        record: The record of the run.
        threat: Its threat.
        data: The data set.
        rows: The lines of `examples.csv` in the order of the data.
        drawn: The lines of `draws.csv` in the same order, for a randomized defence only.
        stored: The stored images with their labels and predictions.
        positions: The rows of the data set that the stored images belong to, `(m,)`.
        images: The stored images.
        clean: The answers to all clean images.
        attacked: The answers to the stored images.
        draws: The number of draws behind every error rate of a randomized defence without members,
            None where error rates are exact.
    """

    record: RunRecord
    threat: Threat
    data: Dataset
    rows: Sequence[ExampleRow]
    drawn: Sequence[DrawRow]
    stored: StoredImages
    positions: Tensor
    images: Images
    clean: Answers
    attacked: Answers
    draws: int | None

    @property
    def ids(self) -> list[int]:
        """Returns the example of each stored image."""
        return [self.data.ids[position] for position in self.positions.tolist()]

    @property
    def attacked_rows(self) -> list[ExampleRow]:
        """Returns the line of each stored image."""
        return [self.rows[position] for position in self.positions.tolist()]

    @property
    def clean_wrong(self) -> Tensor:
        """Returns the recorded error rate of each clean image `(n,)`."""
        if self.drawn:
            return as_tensor(row.clean_wrong for row in self.drawn)
        return as_tensor(float(not row.clean_correct) for row in self.rows)

    @property
    def wrong(self) -> Tensor:
        """Returns the recorded error rate of the worst image of each example `(n,)`."""
        if self.drawn:
            return as_tensor(row.wrong for row in self.drawn)
        return as_tensor(float(not row.robust) for row in self.rows)

    def slack(self, means: int, of: int = 1) -> float:
        """Returns by how much error rates may differ where `means` of them are compared.

        Each is the mean of so many images. Two independent means of draws differ by more with a
        probability below 0.001 (Hoeffding 1963, for all of them together).
        """
        if self.draws is None:
            return EXACT
        return math.sqrt(math.log(2 * max(1, means) / _DOUBT) / (self.draws * max(1, of)))


def as_tensor(values: Iterable[float | None]) -> Tensor:
    """Returns numbers as float64; None becomes NaN, which equals nothing."""
    numbers = [math.nan if value is None else value for value in values]
    return torch.tensor(numbers, dtype=torch.float64)
