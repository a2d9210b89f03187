"""Lists the image files of a folder with their class names, without reading them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustbench_kd.core.errors import DatasetError
from robustbench_kd.datasets._torchvision import import_torchvision

ANNOTATIONS = "val_annotations.txt"
# What file managers and archives leave beside the images.
_NO_CLASSES = {"__MACOSX", "@eaDir", "lost+found", "__pycache__"}
_SPLITS = {"train", "training", "val", "valid", "validation", "test"}
_MOST_NAMED = 5


@dataclass(frozen=True)
class Tree:
    """Image files with the name of the class of each; `names` are those of all classes, sorted.

    `skipped` are hidden files and folders, relative to the folder.
    """

    files: tuple[Path, ...]
    classes: tuple[str, ...]
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person must know: the first files and folders that were skipped."""
        if not self.skipped:
            return ()
        named = ", ".join(self.skipped[:_MOST_NAMED])
        more = len(self.skipped) - _MOST_NAMED
        rest = f" and {more} more" if more > 0 else ""
        return (f"skipped what is hidden: {named}{rest}",)


def list_tree(path: Path) -> Tree:
    """Lists class folders in sorted order, or the files of TinyImageNet's `val_annotations.txt`.

    Names sort as numbers if all are numbers. Raises `DatasetError` where there is no such folder, a
    class has no image, or there are fewer than two classes.
    """
    try:
        if (path / ANNOTATIONS).is_file():
            return _annotated(path)
        return _class_folders(path)
    except OSError as error:
        raise DatasetError(
            f"'{path}': expected a folder with one sub-folder of images per class ({error}); give "
            "its path"
        ) from error


def class_order(names: Sequence[str]) -> list[str]:
    """Returns names in sorted order, as numbers if all are numbers.

    >>> class_order(["10", "2"]), class_order(["c10", "c2"])
    (['2', '10'], ['c10', 'c2'])
    """
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _annotated(path: Path) -> Tree:
    """Lists the files of TinyImageNet: a line is a file in `images`, a class and a box."""
    pairs = []
    text = (path / ANNOTATIONS).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split("\t")
        if len(parts) < 2 or Path(parts[0]).name != parts[0]:
            raise DatasetError(
                f"'{path / ANNOTATIONS}', line {number}: expected a file name and a class, "
                f"separated by a tab, got '{line[:80]}'"
            )
        pairs.append((path / "images" / parts[0], parts[1]))

    names = class_order(sorted({name for _, name in pairs}))
    _require_two(path, names)
    return Tree(tuple(file for file, _ in pairs), tuple(name for _, name in pairs), tuple(names))


def _class_folders(path: Path) -> Tree:
    entries = list(os.scandir(path))
    skipped = sorted(entry.name for entry in entries if _is_hidden(entry.name))
    seen = [entry for entry in entries if not _is_hidden(entry.name)]
    names = class_order([entry.name for entry in seen if entry.is_dir()])
    _require_two(path, names)

    files: list[Path] = []
    classes: list[str] = []
    for name in names:
        found = _images(path, path / name, skipped)
        if not found:
            raise DatasetError(
                f"'{path}': expected a folder with one sub-folder of images per class, got none in "
                f"'{name}'; add images or remove it"
            )
        files += found
        classes += [name] * len(found)
    return Tree(tuple(files), tuple(classes), tuple(names), tuple(skipped))


def _images(path: Path, folder: Path, skipped: list[str]) -> list[Path]:
    """Returns the images in a class folder and below it, as torchvision orders them."""
    suffixes = import_torchvision("datasets").folder.IMG_EXTENSIONS
    found: list[Path] = []
    for root, folders, names in sorted(os.walk(folder, followlinks=True)):
        here = Path(root)
        inside = here.relative_to(folder).parts
        if any(_is_hidden(part) for part in inside):
            continue
        for name in [*folders, *names]:
            if _is_hidden(name):
                skipped.append(str((here / name).relative_to(path)))
        images = [name for name in names if name.lower().endswith(suffixes)]
        found += [here / name for name in sorted(images) if not _is_hidden(name)]
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _NO_CLASSES


def _require_two(path: Path, names: Sequence[str]) -> None:
    if len(names) > 1 and {name.lower() for name in names} <= _SPLITS:
        raise DatasetError(
            f"'{path}': expected at least 2 class folders, got only '{names[0]}' and other splits; "
            f"did you mean '{path / names[-1]}'?"
        )
    if len(names) >= 2:
        return
    if (path.parent / ANNOTATIONS).is_file():
        raise DatasetError(
            f"'{path}': expected at least 2 class folders, got images of '{ANNOTATIONS}'; give "
            f"'{path.parent}'"
        )
    only = f"only '{names[0]}'; did you mean '{path / names[0]}'?" if names else "none"
    raise DatasetError(f"'{path}': expected at least 2 class folders, got {only}")
