"""Handwritten digits of scikit-learn: 1,297 + 500 images, 1 x 8 x 8; needs no download.

Source: E. Alpaydin, C. Kaynak, *Optical recognition of handwritten digits*, UCI, 1998, of which
scikit-learn ships the test part. That part has no official split; the one here is fixed and
stratified.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_kd.datasets._common import build
from robustbench_kd.tensors.contracts import DataRequest, Dataset, Split

SPLIT_SEED = 0
TEST_SIZE = 500


def load(request: DataRequest) -> Dataset:
    """Loads a split in the original order.

    Ids are rows of scikit-learn's set, pixels its values / 16.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415  # slow to import

    pixels, labels = load_digits(return_X_y=True)
    rows = _split_rows(labels, request.split)
    images = (pixels[rows] / 16).reshape(-1, 1, 8, 8)
    return build(
        request, name="digits", pixels=images, labels=labels[rows], classes=10, ids=rows.tolist()
    )


def _split_rows(labels: NDArray[Any], split: Split) -> NDArray[Any]:
    """Returns the sorted rows of a split.

    Shuffled rows are sorted by class, and every 3.6th one is for the test: each class has its part
    of the test to within one example.
    """
    n = len(labels)
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(n)  # numpy keeps this stream for ever
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    test = by_class[np.arange(TEST_SIZE) * n // TEST_SIZE]
    if split == "test":
        return np.sort(test)
    return np.setdiff1d(np.arange(n), test)
