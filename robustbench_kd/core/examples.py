"""Writes `examples.csv`, and reads one back, whatever it holds."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

from pydantic import TypeAdapter, ValidationError

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.rows import ExampleRow
from robustbench_kd.core.text import printable

# Columns are checked as a whole: row by row it would take longer than everything else that a report
# does.
_COLUMNS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(list[kind])  # type: ignore[valid-type]  # known only when it runs
    for name, kind in ExampleRow.__annotations__.items()
}
_ADVICE = "restore the file, or delete its folder and run again"


def to_text(rows: Iterable[ExampleRow]) -> str:
    """Returns an `examples.csv`; None becomes an empty cell, floats keep every digit."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(ExampleRow._fields)
    writer.writerows(rows)
    return buffer.getvalue()


def read_examples(path: Path) -> list[ExampleRow]:
    """Reads an `examples.csv`; raises like `read_columns`."""
    return list(map(ExampleRow, *read_columns(path, *ExampleRow._fields[1:]).values()))


def read_columns(path: Path, *names: str) -> dict[str, list[Any]]:
    """Reads the index and some other columns of an `examples.csv`.

    It takes half the time of reading all rows.

    Columns are found by name, those of a later version are passed over. No index occurs twice.
    Raises `RecordError` that names the file, the line and the first thing wrong with it; what is
    wrong in other columns goes unseen.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            columns, numbers = _cells(file, path, ["index", *names])
    except OSError as error:
        raise RecordError(f"cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecordError(
            f"'{path}' is no text: {error.reason} at byte {error.start}; {_ADVICE}"
        ) from error
    values = {name: _checked(name, cells, path, numbers) for name, cells in columns.items()}
    _check_indices(values["index"], path, numbers)
    return values


def _cells(
    file: TextIO, path: Path, names: Sequence[str]
) -> tuple[dict[str, list[str]], list[int]]:
    """Returns the cells of some columns, and the number of the line of each; the first is 1."""
    reader = csv.reader(file, strict=True)
    cells: list[str] = []
    numbers: list[int] = []
    try:
        header = next(filter(None, reader), [])
        _check_header(header, path)
        wanted = itemgetter(*map(header.index, names))
        for line in filter(None, reader):
            if len(line) != len(header):
                raise _wrong(
                    path, reader.line_num, f"expected {len(header)} cells, got {len(line)}"
                )
            cells += wanted(line)
            numbers.append(reader.line_num)
    except csv.Error as error:
        raise _wrong(path, reader.line_num, str(error)) from error
    return {name: cells[place :: len(names)] for place, name in enumerate(names)}, numbers


def _check_header(header: list[str], path: Path) -> None:
    missing = [name for name in ExampleRow._fields if name not in header]
    if missing:
        raise _wrong(path, 1, f"the header '{','.join(header)[:40]}' lacks {', '.join(missing)}")


def _checked(name: str, texts: Sequence[str], path: Path, numbers: Sequence[int]) -> list[Any]:
    known = texts if name == "broken_by" else [text or None for text in texts]
    try:
        checked: list[Any] = _COLUMNS[name].validate_python(known)
    except ValidationError as error:
        first = error.errors()[0]
        row = int(first["loc"][0])
        raise _wrong(path, numbers[row], f"{name}: {first['msg']}, got '{texts[row]}'") from error
    return checked


def _check_indices(indices: Sequence[int], path: Path, numbers: Sequence[int]) -> None:
    if len(set(indices)) == len(indices):
        return
    index, _ = Counter(indices).most_common(1)[0]
    again = indices.index(index, indices.index(index) + 1)
    raise _wrong(path, numbers[again], f"example {index} is there a second time")


def _wrong(path: Path, line: int, what: str) -> RecordError:
    shown = printable(what)
    return RecordError(
        f"'{path}', line {line}: {shown[:200]}{'...' if len(shown) > 200 else ''}; {_ADVICE}"
    )
