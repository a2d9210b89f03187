"""Finds the files of a person's own code that a Python file imports, without running any."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_OURS = Path(__file__).resolve().parents[1]  # the identity has the version of this package
_INSTALLED = {"site-packages", "dist-packages"}


def digest(file: Path, roots: Iterable[Path]) -> str:
    """Returns the sha256 of a Python file with all that it imports from folders of a person's own.

    `roots` are the folders that its absolute imports may come from. Where it imports nothing from
    there, it is the sha256 of the file alone.
    """
    file = file.resolve()
    files = _closure(file, [root.resolve() for root in roots])
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    if len(digests) == 1:
        return digests[file]
    # Without the folders: the same code has the same digest on every machine.
    lines = sorted(f"{path.name} {found}" for path, found in digests.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _closure(file: Path, roots: list[Path]) -> set[Path]:
    found = {file}
    left = [file]
    while left:
        here = left.pop()
        new = {path for path in _imported(here, roots) if path not in found and _is_own(path)}
        found |= new
        left += new
    return found


def _is_own(path: Path) -> bool:
    return not (_INSTALLED & set(path.parts) or path.is_relative_to(_OURS))


def _imported(file: Path, roots: list[Path]) -> Iterator[Path]:
    """Yields the files that the import statements of a file name, wherever they stand in it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # it cannot be imported, either
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(alias.name.split("."), roots)
        elif isinstance(node, ast.ImportFrom):
            bases = [file.parents[node.level - 1]] if node.level else roots
            module = node.module.split(".") if node.module else []
            for alias in node.names:
                yield from _files([*module, alias.name], bases)


def _files(parts: list[str], bases: Iterable[Path]) -> Iterator[Path]:
    """Yields the files of a dotted name, packages on the way included."""
    for base in bases:
        for length in range(1, len(parts) + 1):
            place = base.joinpath(*parts[:length])
            for path in (place / "__init__.py", place.with_suffix(".py")):
                if path.is_file():
                    yield path.resolve()
