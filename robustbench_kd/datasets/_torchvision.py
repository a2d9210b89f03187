"""The official files of torchvision's data sets, read only when one is asked for.

Shared by the data sets.
"""

import importlib
from types import ModuleType
from typing import Any

from robustbench_kd.core.errors import DatasetError, UsageError
from robustbench_kd.tensors.contracts import DataRequest

# What torchvision raises for missing, damaged and undownloadable files; its reader of MNIST
# asserts.
_FAILURES = (RuntimeError, OSError, ValueError, AssertionError)


def import_torchvision(module: str) -> ModuleType:
    """Imports `torchvision.<module>`.

    Raises `UsageError` where it is missing or does not fit torch.
    """
    try:
        return importlib.import_module(f"torchvision.{module}")
    # Wheels of torch and torchvision that do not match fail with a RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"this data set needs torchvision, which cannot be imported ({error}): install torch "
            "and "
            "torchvision from the same index, or save the images as an npz file and use npz:FILE"
        ) from error


def official(request: DataRequest, source: str, *, files: str, **split: object) -> Any:
    """Returns torchvision's data set `source`, whose `data` holds the whole split as uint8.

    Raises `DatasetError` where `files`, as torchvision names them in the data folder, are missing
    or damaged.
    """
    kind = getattr(import_torchvision("datasets"), source)
    try:
        return kind(request.data_dir, download=request.download, **split)
    except _FAILURES as error:
        where = f"'{files}' in the folder '{request.data_dir}'"
        if request.download:
            raise DatasetError(
                f"{source}: cannot download {where} ({error}); check the connection"
            ) from error
        raise DatasetError(
            f"{source}: expected {where}, which is missing or damaged; "
            "say where it is with --data-dir, or fetch it with --download"
        ) from error
