"""Image files in one folder per class: `folder:PATH` or `folder:PATH@SIZE` (torchvision).

Classes are the sub-folders in sorted order, examples the files in sorted path order. The first
examples are thus those of the first classes: **a limit does not sample the classes evenly**, and
the accuracy on a limited folder is not that of the whole. For fewer examples make a folder of the
ones you want.

Images become RGB, also grey ones. They must be of one size, or `@SIZE` resizes the shorter side to
SIZE * 256 / 224 and crops the centre to SIZE, the usual evaluation on ImageNet (torchvision's
reference presets: resize 256, crop 224). The folder is the split: give the path of its `train` or
`val` folder.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_kd.core.errors import DatasetError
from robustbench_kd.datasets._common import build, count
from robustbench_kd.datasets._torchvision import import_torchvision
from robustbench_kd.tensors.contracts import DataRequest, Dataset

ARGUMENT = "PATH[@SIZE]"

Pixels = NDArray[np.uint8]


def load(request: DataRequest) -> Dataset:
    """Loads the images of a folder; ids are the rows in sorted path order.

    Raises:
        DatasetError: a folder with fewer than two classes or an empty one, a file that is no image,
            images of several sizes where no SIZE is given.
    """
    path, size = _parse(request.argument)
    listing = _list(path)
    n = count(request, len(listing.samples), f"folder:{path.name}")
    files = [Path(file) for file, _ in listing.samples[:n]]
    pixels = _stack(path, files, [_read(file, size, listing.loader) for file in files])
    return build(
        request,
        name=f"folder:{path.name}",
        pixels=pixels,
        labels=listing.targets,
        classes=len(listing.classes),
    )


def _parse(argument: str) -> tuple[Path, int | None]:
    sized = re.fullmatch(r"(.+)@([1-9]\d*)", argument)
    if sized:
        return (Path(sized[1]), int(sized[2]))
    return (Path(argument), None)


def _list(path: Path) -> Any:
    image_folder = import_torchvision("datasets").ImageFolder
    try:
        listing = image_folder(path)
    except OSError as error:
        raise DatasetError(
            f"'{path}': expected a folder with one sub-folder of images per class ({error}); give "
            "its path"
        ) from error
    if len(listing.classes) < 2:
        only = listing.classes[0]
        raise DatasetError(
            f"'{path}': expected at least 2 class folders, got only '{only}'; did you mean "
            f"'{path / only}'?"
        )
    return listing


def _read(file: Path, size: int | None, loader: Any) -> Pixels:
    """Returns RGB pixels, uint8 `(h, w, 3)`."""
    try:
        image = loader(file)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow calls a broken PNG a syntax error
        raise DatasetError(
            f"'{file}': expected an image, got a file that cannot be read ({error})"
        ) from error
    if size is not None:
        functional = import_torchvision("transforms.functional")
        image = functional.center_crop(
            functional.resize(image, round(size * 256 / 224)), [size, size]
        )
    return np.asarray(image, dtype=np.uint8)


def _stack(path: Path, files: list[Path], images: list[Pixels]) -> Pixels:
    first = images[0].shape
    for file, image in zip(files, images, strict=True):
        if image.shape != first:
            sizes = f"{_size(first)} ('{files[0].name}') and {_size(image.shape)} ('{file.name}')"
            raise DatasetError(
                f"'{path}': expected images of one size, got {sizes}; "
                f"write folder:{path}@SIZE, for example @224, to resize and crop them"
            )
    return np.stack(images)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
