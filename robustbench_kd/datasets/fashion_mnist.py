"""Fashion-MNIST: 60,000 + 10,000 pictures of clothes in 10 classes, 1 x 28 x 28 (torchvision).

Source: H. Xiao, K. Rasul, R. Vollgraf, *Fashion-MNIST*, arXiv 1708.07747, 2017.
"""

from robustbench_kd.datasets._common import build
from robustbench_kd.datasets._torchvision import official
from robustbench_kd.tensors.contracts import DataRequest, Dataset


def load(request: DataRequest) -> Dataset:
    """Loads a split from `FashionMNIST/raw` in the data folder, or raises `DatasetError`."""
    raw = official(
        request, "FashionMNIST", files="FashionMNIST/raw", train=request.split == "train"
    )
    return build(
        request, name="fashion_mnist", pixels=raw.data.numpy(), labels=raw.targets, classes=10
    )
