"""Image files in one folder per class: `folder:PATH`, `folder:PATH@SIZE@grey@classes=FILE`.

Classes are the sub-folders in sorted order, as numbers if all names are numbers; hidden ones are
skipped. `@classes=FILE` names the classes of the model in its order, so that a folder may hold a
part of them; so do the `class_names` of a card. A folder with TinyImageNet's `val_annotations.txt`
is read by it. Ids are the rows in that order. A limit spreads the examples over the classes by a
keyed draw.

Images become RGB, or of one channel with `@grey`. They must be of one size, or `@SIZE` resizes the
shorter side to SIZE * 256 / 224 and crops the centre to SIZE, the usual evaluation on ImageNet
(torchvision's reference presets: resize 256, crop 224). The folder is the split: give the path of
its `train` or `val` folder.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_kd.core.errors import DatasetError
from robustbench_kd.datasets._class_names import numbers_of, read_class_names
from robustbench_kd.datasets._common import build, count
from robustbench_kd.datasets._torchvision import import_torchvision
from robustbench_kd.datasets._tree import Tree, list_tree
from robustbench_kd.tensors import keyed_random
from robustbench_kd.tensors.contracts import DataRequest, Dataset
from robustbench_kd.tensors.ranks import rank_in_class

ARGUMENT = "PATH[@SIZE][@grey][@classes=FILE]"

Pixels = NDArray[np.uint8]
_SEED = 0
_OPTION = re.compile(r"(.+)[@,](?:([1-9]\d*)|(grey)|classes=([^@]+))", re.DOTALL)


@dataclass(frozen=True)
class _Wish:
    """What an argument asks for."""

    path: Path
    size: int | None = None
    grey: bool = False
    classes: Path | None = None

    @property
    def name(self) -> str:
        """The argument without folders."""
        size = f"@{self.size}" if self.size else ""
        classes = f"@classes={self.classes.name}" if self.classes else ""
        return f"folder:{self.path.absolute().name}{size}{'@grey' if self.grey else ''}{classes}"


def load(request: DataRequest) -> Dataset:
    """Loads the images of a folder; ids are the rows in sorted order.

    Raises:
        DatasetError: a folder with fewer than two classes or an empty one, a file that is no image,
            images of several sizes where no SIZE is given, a class that the class list lacks.
    """
    loader = import_torchvision("datasets").folder.default_loader
    wish = _parse(request.argument)
    tree = list_tree(wish.path)
    numbers, classes = _numbers(tree, wish, request)
    labels = torch.tensor([numbers[name] for name in tree.classes])
    n = count(request, len(labels), wish.name)
    rows = _spread(labels, n)

    files = [tree.files[row] for row in rows.tolist()]
    pixels = _stack(wish.path, files, [_read(file, wish, loader) for file in files])
    data = build(
        replace(request, limit=None),
        name=wish.name,
        pixels=pixels,
        labels=labels[rows].numpy(),
        classes=classes,
        ids=rows.tolist(),
    )
    notes = [*tree.notes]
    if n < len(labels):
        seen = len(torch.unique(labels[rows]))
        notes.append(f"{n} of {len(labels)} images, spread over {seen} classes by a keyed draw")
    return replace(data, notes=tuple(notes))


def _parse(argument: str) -> _Wish:
    """Reads options from the right, unless the whole is the path of a folder."""
    sized = _OPTION.fullmatch(argument)
    if Path(argument).is_dir() or not sized:
        return _Wish(Path(argument))
    rest, size, grey, classes = sized.groups()
    wish = _parse(rest)
    if size:
        return replace(wish, size=int(size))
    if grey:
        return replace(wish, grey=True)
    return replace(wish, classes=Path(os.path.expanduser(classes)))  # noqa: PTH111  # as open_dataset


def _numbers(tree: Tree, wish: _Wish, request: DataRequest) -> tuple[dict[str, int], int]:
    """Returns the class of each name, and how many classes there are."""
    if wish.classes:
        names = read_class_names(wish.classes)
        return numbers_of(tree.names, names, source=f"'{wish.classes}'"), len(names)
    listed = [(name,) for name in request.class_names]
    if listed:
        return numbers_of(tree.names, listed, source="the card's class_names"), len(listed)
    return {name: number for number, name in enumerate(tree.names)}, len(tree.names)


def _spread(labels: Tensor, n: int) -> Tensor:
    """Returns n rows in ascending order, as many of each class as there are or as fit.

    Which ones follows from the rows alone, and more include fewer.
    """
    rows = torch.arange(len(labels))
    keys = keyed_random.uniform(_SEED, "datasets/folder", rows, rows * 0, 0, 1)[:, 0]
    order = keys.argsort(stable=True)
    turns = rank_in_class(labels[order])
    chosen = order[turns.argsort(stable=True)][:n]
    return chosen.sort().values


def _read(file: Path, wish: _Wish, loader: Any) -> Pixels:
    """Returns pixels, uint8 `(h, w, 3)`, or `(h, w)` where grey ones are asked for."""
    try:
        image = loader(file)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow calls a broken PNG a syntax error
        raise DatasetError(
            f"'{file}': expected an image, got a file that cannot be read "
            f"({type(error).__name__}); replace it, or leave it out"
        ) from error
    if wish.grey:
        image = image.convert("L")
    if wish.size is not None:
        functional = import_torchvision("transforms.functional")
        image = functional.center_crop(
            functional.resize(image, round(wish.size * 256 / 224)), [wish.size, wish.size]
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
