"""MNIST: 60,000 + 10,000 handwritten digits, 1 x 28 x 28 (torchvision).

Source: Y. LeCun et al., *Gradient-based learning applied to document recognition*, 1998.
"""

from robustbench_kd.datasets._common import build
from robustbench_kd.datasets._torchvision import official
from robustbench_kd.tensors.contracts import DataRequest, Dataset


def load(request: DataRequest) -> Dataset:
    """Loads a split from `MNIST/raw` in the data folder, or raises `DatasetError`."""
    raw = official(request, "MNIST", files="MNIST/raw", train=request.split == "train")
    return build(request, name="mnist", pixels=raw.data.numpy(), labels=raw.targets, classes=10)
