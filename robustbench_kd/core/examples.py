"""Reads `examples.csv`, whatever it holds."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.records import ExampleRow
from robustbench_kd.core.text import printable

_FIELDS = ExampleRow.model_fields
_REQUIRED = [name for name, field in _FIELDS.items() if field.is_required()]
_ADVICE = "restore the file, or delete its folder and run again"


def read_examples(path: Path) -> list[ExampleRow]:
    """Reads an `examples.csv`; raises `RecordError` that names the file, the line and the first thing wrong with it.

    Columns are found by name, those of a later version are passed over. No index occurs twice.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(_rows(file, path))
    except OSError as error:
        raise RecordError(f"cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"'{path}' is no text: {error.reason} at byte {error.start}; {_ADVICE}") from error


def _rows(file: TextIO, path: Path) -> Iterator[ExampleRow]:
    lines = _lines(file, path)
    _, header = next(lines, (1, []))
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        raise _wrong(path, 1, f"the header '{','.join(header)[:40]}' lacks {', '.join(missing)}")
    seen: set[int] = set()
    for number, cells in lines:
        if len(cells) != len(header):
            raise _wrong(path, number, f"expected {len(header)} cells, got {len(cells)}")
        row = _row(dict(zip(header, cells, strict=True)), path, number)
        if row.index in seen:
            raise _wrong(path, number, f"example {row.index} stands there a second time")
        seen.add(row.index)
        yield row


def _lines(file: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the lines that hold anything with their numbers, of which the first is 1."""
    reader = csv.reader(file, strict=True)
    try:
        yield from ((reader.line_num, cells) for cells in reader if cells)
    except csv.Error as error:
        raise _wrong(path, reader.line_num, str(error)) from error


def _row(cells: dict[str, str], path: Path, number: int) -> ExampleRow:
    known = {name: text if text or name == "broken_by" else None for name, text in cells.items() if name in _FIELDS}
    try:
        return ExampleRow.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        column = str(first["loc"][0])
        raise _wrong(path, number, f"{column}: {first['msg']}, got '{cells.get(column, '')}'") from error


def _wrong(path: Path, line: int, what: str) -> RecordError:
    shown = printable(what)
    return RecordError(f"'{path}', line {line}: {shown[:200]}{'...' if len(shown) > 200 else ''}; {_ADVICE}")
