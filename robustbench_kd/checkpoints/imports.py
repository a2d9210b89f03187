"""Imports the Python code that a person names, as `python file.py` or `python -m module` would."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from robustbench_kd.checkpoints._text import one_line
from robustbench_kd.checkpoints.sources import digest
from robustbench_kd.core.errors import CheckpointError, RkdError, UsageError, unknown_name

# The folder of each module that a file has imported from beside itself.
_folder_of: dict[str, Path] = {}


def is_factory(name: str) -> bool:
    """Tells whether a name is `module:factory` or `file.py:factory`, whose use runs code."""
    return ":" in name


def code_digest(name: str) -> str:
    """Returns the sha256 of a factory's source file and of the files beside it that it imports.

    It is empty for the architectures of `models/`.
    """
    if not is_factory(name):
        return ""
    file = _import(name.rpartition(":")[0]).__file__
    if not file:
        return ""
    folder = Path(file).resolve().parent
    return digest(Path(file), [folder, _root(folder), Path.cwd()])


def find_code(name: str) -> Callable[..., Any]:
    """Returns what `module:name` or `file.py:name` leads to, after running the code around it.

    Raises `UsageError` where there is no such file, module or name, `CheckpointError` where running
    it fails.
    """
    source, _, attribute = name.rpartition(":")
    imported = _import(source)
    code: Callable[..., Any] | None = getattr(imported, attribute, None)
    if callable(code):
        return code

    public = []
    for key, value in vars(imported).items():
        if callable(value) and not key.startswith("_"):
            public.append(key)
    raise unknown_name(f"factory in '{source}'", attribute, public)


@contextmanager
def import_path(source: str) -> Iterator[None]:
    """Lets the code of `module` or `file.py` import from the working directory and its own folder.

    Afterwards the import path lacks them again; what the code added itself stays. The folders of
    two files may hold different modules of one name: those of the other folder are forgotten.
    """
    folders = [Path.cwd()]
    own = None
    if source.endswith(".py"):
        own = Path(source).resolve().parent
        folders = [own, _root(own), *folders]
        _forget_all_but(own)

    entries = list(dict.fromkeys(map(str, folders)))
    before = set(sys.modules)
    sys.path[:0] = entries
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if own:  # a package without a file is looked up on the path again, so this comes first
            _remember(set(sys.modules) - before, own)
        for entry in entries:
            with suppress(ValueError):
                sys.path.remove(entry)


def _forget_all_but(folder: Path) -> None:
    for name, owner in list(_folder_of.items()):
        if owner != folder:
            sys.modules.pop(name, None)
            del _folder_of[name]


def _remember(names: set[str], folder: Path) -> None:
    for name in names:
        if _lies_in(name, folder) or _lies_in(name, _root(folder)):
            _folder_of[name] = folder


def _lies_in(name: str, folder: Path) -> bool:
    """Tells whether a module is a file or package of a folder, or a part of such a package.

    What is installed somewhere below the folder is none of it.
    """
    top = name.partition(".")[0]
    module = sys.modules.get(top)
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    expected = {folder / f"{top}.py", folder / top, folder / top / "__init__.py"}
    return any(Path(place).resolve() in expected for place in places)


def _package(folder: Path) -> list[str]:
    """Returns the names of the package that a folder is, outermost first; none without one."""
    names: list[str] = []
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return names


def _root(folder: Path) -> Path:
    """Returns the folder that holds the package of a folder, or itself where it is no package."""
    for _ in _package(folder):
        folder = folder.parent
    return folder


def _import(source: str) -> ModuleType:
    """Imports a module by its name, or a Python file by its path."""
    try:
        with import_path(source):
            if source.endswith(".py"):
                return _import_file(Path(source))
            return importlib.import_module(source)
    except RkdError:
        raise
    except ModuleNotFoundError as error:
        advice = "put it beside the file" if source.endswith(".py") else "name a file.py:factory"
        raise UsageError(f"cannot import '{source}': {error}; install it, or {advice}") from error
    # An import runs the user's own code, scripts without a guard included.
    except (Exception, SystemExit) as error:
        raise CheckpointError(
            f"importing '{source}' failed: {type(error).__name__}: {one_line(error)}"
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file '{path}'")
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    # A name inside of its package allows relative imports.
    name = ".".join([*_package(path.resolve().parent), f"_rkd_{path.stem}_{key[:8]}"])
    if name in sys.modules:
        return sys.modules[name]

    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"'{path}' is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise
    return loaded
