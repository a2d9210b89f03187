"""Published numbers, read from RobustBench's `model_info` files: reference lines, never ranked.

Source: RobustBench/robustbench, `model_info/<data set>/<threat>/<model>.json`. Accuracies are
percent, mostly as text; `external` is the result of a stronger attack than AutoAttack, where
somebody found one.
"""

import math
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.records import Frozen, Identity, Name
from robustbench_kd.core.threat import Norm, ratio

Percent = Annotated[float, Field(ge=0, le=100)]


class Published(Frozen):
    """An accuracy that others report, in fractions.

    `standard` is AutoAttack's where a stronger attack went lower.
    """

    model: Name
    title: Name
    venue: Name
    link: Name
    architecture: Name
    dataset: Name
    norm: Norm
    eps: float
    clean: float
    robust: float
    standard: float | None
    unreliable: bool

    def fits(self, identity: Identity) -> bool:
        """Returns whether a run asked for the same data set and threat; examples may differ."""
        same = (self.dataset, str(self.norm)) == (identity.dataset, identity.norm)
        return same and math.isclose(self.eps, identity.eps, rel_tol=1e-9)


class _Entry(BaseModel):
    dataset: str
    eps: float | str
    clean_acc: Percent
    autoattack_acc: Percent
    external: Percent | None = None
    unreliable: bool = False
    name: str | None = None
    venue: str | None = None
    link: str | None = None
    architecture: str | None = None
    model_name: str | None = None
    threat_model: str | None = None


_ENTRIES = TypeAdapter(list[_Entry])


def read_published(path: Path) -> tuple[tuple[Published, ...], tuple[str, ...]]:
    """Reads one file, or every file in the folders `Linf`, `L2` and `L1` below a folder.

    Returns the numbers, and what could not be read. The norm is the name of the file's folder, as
    in RobustBench, unless the file has `threat_model`. A file holds one entry or a list of them.
    Raises `RecordError` where there is nothing.
    """
    if not path.exists():
        raise RecordError(
            f"there is no '{path}': give a file or folder of RobustBench's model_info"
        )
    files = _files(path) if path.is_dir() else [path]
    numbers: list[Published] = []
    left_out: list[str] = []
    for file in files:
        try:
            numbers += [_published(entry, file) for entry in _entries(file)]
        except (OSError, ValueError, ArithmeticError) as error:
            left_out.append(f"'{file}' holds no published number: {_reason(error)}")
    return tuple(numbers), tuple(left_out)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.json") if file.parent.name.lower() in list(Norm))


def _entries(file: Path) -> list[_Entry]:
    text = file.read_bytes()
    return _ENTRIES.validate_json(text if text.lstrip().startswith(b"[") else b"[" + text + b"]")


def _published(entry: _Entry, file: Path) -> Published:
    lowest, standard = entry.autoattack_acc, None
    if entry.external is not None:
        lowest, standard = entry.external, entry.autoattack_acc / 100
    return Published(
        model=entry.model_name or file.stem,
        title=entry.name or "",
        venue=entry.venue or "",
        link=entry.link or "",
        architecture=entry.architecture or "",
        dataset=entry.dataset,
        norm=Norm((entry.threat_model or file.parent.name).lower()),
        eps=ratio(str(entry.eps)),
        clean=entry.clean_acc / 100,
        robust=lowest / 100,
        standard=standard,
        unreliable=entry.unreliable,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "the file"
        return f"{where}: {first['msg']}"
    return str(error)
