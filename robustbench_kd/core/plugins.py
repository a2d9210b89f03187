"""Finds components by file name: no registry, no import until one is used.

A component is one file in a component folder, `datasets/digits.py`. A file may serve several names
by a literal `VARIANTS = {"resnet18": {"depth": 18}, ...}`; without one its name is the file's.
Files that start with an underscore are shared by their folder and are no components.
"""

import ast
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from robustbench_kd.core.errors import unknown_name

_PACKAGE = __name__.split(".", maxsplit=1)[0]
_ROOT = Path(__file__).parent.parent


class Component(NamedTuple):
    """The file behind a name: its stem, the arguments of the name, and its first line."""

    stem: str
    arguments: dict[str, Any]
    summary: str


def folder(kind: str) -> Path:
    """Returns the folder of a kind of component, such as `datasets` or `training/recipes`."""
    return _ROOT / kind


def files(kind: str, suffix: str = ".py") -> dict[str, Path]:
    """Returns the component files of a folder by stem, sorted."""
    found = sorted(folder(kind).glob(f"[!_]*{suffix}"))
    return {path.stem: path for path in found}


def components(kind: str) -> dict[str, Component]:
    """Returns every name that a kind of component offers; reads the files, imports none.

    >>> components("datasets")["digits"].stem
    'digits'
    """
    found: dict[str, Component] = {}
    for path in files(kind).values():
        found |= _offers(path, path.stat().st_mtime_ns)
    return found


def find(kind: str, name: str, singular: str) -> Component:
    """Returns one component by name; raises `UsageError` with the nearest name."""
    known = components(kind)
    if name not in known:
        raise unknown_name(singular, name, known)
    return known[name]


def module(kind: str, stem: str) -> ModuleType:
    """Imports a component's file."""
    return importlib.import_module(f"{_PACKAGE}.{kind.replace('/', '.')}.{stem}")


@cache
def _offers(path: Path, _changed: int) -> dict[str, Component]:
    """Returns what a file offers; it is read again only when it has changed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    return {
        name: Component(path.stem, given, summary)
        for name, given in _variants(tree, path.stem).items()
    }


def _variants(tree: ast.Module, stem: str) -> dict[str, dict[str, object]]:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and target.id == "VARIANTS":
            return dict(ast.literal_eval(value))
    return {stem: {}}
