"""Writes `examples.csv`, and reads one or `draws.csv` back, whatever they hold."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO, TypeAlias, get_type_hints

from pydantic import TypeAdapter, ValidationError

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.files import read_bytes
from robustbench_kd.core.rows import DrawRow, ExampleRow
from robustbench_kd.core.text import printable

# Columns are checked as a whole: row by row it would take longer than everything else that a report
# does.
_Schema: TypeAlias = dict[str, TypeAdapter[Any]]
_EXAMPLES: _Schema = {
    name: TypeAdapter(list[kind])  # type: ignore[valid-type]  # known only when it runs
    for name, kind in get_type_hints(ExampleRow, include_extras=True).items()
}
_DRAWS: _Schema = {
    name: TypeAdapter(list[kind])  # type: ignore[valid-type]  # known only when it runs
    for name, kind in get_type_hints(DrawRow, include_extras=True).items()
    if name in DrawRow.model_fields
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
    return _read(path, _EXAMPLES, ["index", *names])


def read_draws(path: Path) -> dict[str, list[Any]]:
    """Reads the columns of a `draws.csv`; raises like `read_columns`."""
    return _read(path, _DRAWS, list(_DRAWS))


def _read(path: Path, schema: _Schema, names: Sequence[str]) -> dict[str, list[Any]]:
    try:
        file = io.StringIO(read_bytes(path).decode(), newline="")
    except OSError as error:
        raise RecordError(f"cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecordError(
            f"'{path}' is no text: {error.reason} at byte {error.start}; {_ADVICE}"
        ) from error
    columns, numbers = _cells(file, path, schema, names)
    values = {}
    for name, cells in columns.items():
        values[name] = _checked(name, cells, schema[name], path, numbers)
    _check_indices(values["index"], path, numbers)
    return values


def _cells(
    file: TextIO, path: Path, schema: Iterable[str], names: Sequence[str]
) -> tuple[dict[str, list[str]], list[int]]:
    """Returns the cells of some columns, and the number of the line of each; the first is 1."""
    reader = csv.reader(file, strict=True)
    cells: list[str] = []
    numbers: list[int] = []
    try:
        header = next(filter(None, reader), [])
        _check_header(header, schema, path)
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


def _check_header(header: list[str], schema: Iterable[str], path: Path) -> None:
    missing = [name for name in schema if name not in header]
    if missing:
        raise _wrong(path, 1, f"the header '{','.join(header)[:40]}' lacks {', '.join(missing)}")


def _checked(
    name: str, texts: Sequence[str], kind: TypeAdapter[Any], path: Path, numbers: Sequence[int]
) -> list[Any]:
    known = texts if name == "broken_by" else [text or None for text in texts]
    try:
        checked: list[Any] = kind.validate_python(known)
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
