"""CIFAR-10: 50,000 + 10,000 photographs of 10 classes, 3 x 32 x 32 (torchvision).

Source: A. Krizhevsky, *Learning multiple layers of features from tiny images*, 2009.
"""

from robustbench_kd.datasets._common import build
from robustbench_kd.datasets._torchvision import official
from robustbench_kd.tensors.contracts import DataRequest, Dataset


def load(request: DataRequest) -> Dataset:
    """Loads a split from `cifar-10-batches-py` in the data folder, or raises `DatasetError`."""
    raw = official(request, "CIFAR10", files="cifar-10-batches-py", train=request.split == "train")
    return build(request, name="cifar10", pixels=raw.data, labels=raw.targets, classes=10)
