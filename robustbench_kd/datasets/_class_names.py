"""Reads the names of a model's classes in the order of its outputs."""

import json
from collections.abc import Sequence
from pathlib import Path

from robustbench_kd.core.errors import DatasetError
from robustbench_kd.core.received import read_text

_LARGEST = 2**24  # bytes: all classes of ImageNet-21k take a fortieth

Names = Sequence[tuple[str, ...]]  # of each class all that it may be called


def read_class_names(path: Path) -> Names:
    """Reads a class list: a line of text for each class, or JSON.

    A line is a name, or a name with more words behind it, as in `n01440764 tench`. JSON is a list
    of names, or maps numbers to names or to lists of names, or names to numbers. Raises
    `DatasetError`.
    """
    text = read_text(path, "class list", DatasetError, most=_LARGEST)
    try:
        names = _of_json(json.loads(text)) if path.suffix == ".json" else _of_lines(text)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DatasetError(
            f"'{path}': expected a class list, one name a line or JSON, in the order of the "
            f"model's classes, got {error}"
        ) from error
    if len(names) < 2:
        raise DatasetError(f"'{path}': expected at least 2 class names, got {len(names)}")
    return names


def _of_lines(text: str) -> Names:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line, line.split()[0]) for line in lines]


def _of_json(content: object) -> Names:
    if isinstance(content, dict):
        if all(isinstance(value, int) for value in content.values()):
            content = sorted(content, key=content.__getitem__)
        else:
            content = [content[str(number)] for number in range(len(content))]
    if not isinstance(content, list):
        raise TypeError(type(content).__name__)
    return [tuple(map(str, one)) if isinstance(one, list) else (str(one),) for one in content]


def numbers_of(found: Sequence[str], names: Names, *, source: str) -> dict[str, int]:
    """Returns the class of each folder name; raises `DatasetError` where one is in no list."""
    known: dict[str, int] = {}
    for number, spellings in enumerate(names):
        for name in spellings:
            known.setdefault(name, number)
    missing = [name for name in found if name not in known]
    if missing:
        raise DatasetError(
            f"{source}: expected the names of the class folders among its {len(names)} classes, "
            f"got '{missing[0]}' and {len(missing) - 1} more that it lacks; name folders and list "
            "alike"
        )
    return {name: known[name] for name in found}
