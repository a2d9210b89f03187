"""Data sets, one file each: labelled images in [0, 1] with stable example ids.

A file offers `load(request: DataRequest) -> Dataset`. One that takes an argument, as in `npz:FILE`,
says what it takes by a literal `ARGUMENT = "FILE"`.
"""

import os
from dataclasses import replace
from pathlib import Path

from robustbench_kd.core import plugins
from robustbench_kd.core.errors import UsageError
from robustbench_kd.tensors.contracts import DataRequest, Dataset, Split

_KIND = "datasets"


def open_dataset(
    text: str,
    *,
    split: Split = "test",
    limit: int | None = None,
    data_dir: Path = Path("data"),
    download: bool = False,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Loads a data set by its name: `digits`, `cifar10`, `npz:FILE`, `folder:PATH`.

    The name of the result is the text without folders, so that a record holds no personal path.
    `limit` takes the first examples of the split, of a folder examples of all its classes, None all
    of them; `~` at the start of a path is the home folder. `class_names` are those of the model in
    its order, for a folder that holds a part of them.

    Raises:
        UsageError: an unknown name, a missing or needless argument, a limit below 1.
        DatasetError: images or labels that are missing, damaged or out of range, or fewer than
            `limit`.

    >>> open_dataset("digits", limit=100).images.shape
    torch.Size([100, 1, 8, 8])
    """
    name, _, argument = text.partition(":")
    component = plugins.find(_KIND, name, "data set")
    module = plugins.module(_KIND, component.stem)
    _check_argument(name, argument, expected=getattr(module, "ARGUMENT", ""))
    if limit is not None and limit < 1:
        raise UsageError(f"expected a limit of at least 1 example, got {limit}")
    # Path.expanduser fails where there is no home folder.
    path = os.path.expanduser(argument)  # noqa: PTH111
    request = DataRequest(
        split=split,
        argument=path,
        limit=limit,
        data_dir=data_dir,
        download=download,
        class_names=class_names,
    )
    dataset: Dataset = module.load(request, **component.arguments)
    return dataset if argument else replace(dataset, name=name)


def _check_argument(name: str, argument: str, *, expected: str) -> None:
    if expected and not argument:
        raise UsageError(f"data set '{name}' needs an argument: write {name}:{expected}")
    if argument and not expected:
        raise UsageError(f"data set '{name}' takes no argument, got '{argument}': write {name}")
