"""CIFAR-100: 50,000 + 10,000 photographs of 100 classes (fine labels), 3 x 32 x 32 (torchvision).

Source: A. Krizhevsky, *Learning multiple layers of features from tiny images*, 2009.
"""

from robustbench_kd.datasets._common import build
from robustbench_kd.datasets._torchvision import official
from robustbench_kd.tensors.contracts import DataRequest, Dataset


def load(request: DataRequest) -> Dataset:
    """Loads a split from `cifar-100-python` in the data folder, or raises `DatasetError`."""
    raw = official(request, "CIFAR100", files="cifar-100-python", train=request.split == "train")
    return build(request, name="cifar100", pixels=raw.data, labels=raw.targets, classes=100)
