"""SVHN: 73,257 + 26,032 house numbers, cropped to one digit, 3 x 32 x 32 (torchvision).

Source: Y. Netzer et al., *Reading digits in natural images with unsupervised feature learning*,
2011.
"""

from robustbench_kd.datasets._common import build
from robustbench_kd.datasets._torchvision import official
from robustbench_kd.tensors.contracts import DataRequest, Dataset


def load(request: DataRequest) -> Dataset:
    """Loads a split from its `.mat` file in the data folder, or raises `DatasetError`."""
    raw = official(request, "SVHN", files=f"{request.split}_32x32.mat", split=request.split)
    channels_last = raw.data.transpose(0, 2, 3, 1)
    return build(request, name="svhn", pixels=channels_last, labels=raw.labels, classes=10)
