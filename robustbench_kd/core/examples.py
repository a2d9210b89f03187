"""Writes `examples.csv`, and reads one or `draws.csv` back, whatever they hold."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias, get_type_hints

from pydantic import TypeAdapter, ValidationError

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.files import read_bytes
from robustbench_kd.core.rows import DrawRow, ExampleRow
from robustbench_kd.core.text import printable

# Columns are checked as a whole: row by row it would take longer than everything else that a report
# does.
_Schema: TypeAlias = dict[str, TypeAdapter[Any]]


def _schema(row: type, names: Iterable[str]) -> _Schema:
    """Returns what checks each column of rows of a kind."""
    kinds = get_type_hints(row, include_extras=True)
    return {name: TypeAdapter(list[kinds[name]]) for name in names}  # type: ignore[valid-type]


_EXAMPLES = _schema(ExampleRow, ExampleRow._fields)
_DRAWS = _schema(DrawRow, DrawRow.model_fields)
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
        text = read_bytes(path).decode()
    except OSError as error:
        raise RecordError(f"cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecordError(
            f"'{path}' is no text: {error.reason} at byte {error.start}; {_ADVICE}"
        ) from error
    table = _Table(path, text)
    values = {}
    for name, cells in table.columns(schema, names).items():
        values[name] = _checked(name, cells, schema[name], table)
    _check_indices(values["index"], table)
    return values


@dataclass(frozen=True)
class _Table:
    """The text of a CSV file: a header, and rows counted from 0; empty lines are passed over."""

    path: Path
    text: str

    def columns(self, schema: Iterable[str], names: Sequence[str]) -> dict[str, list[str]]:
        """Returns the cells of some columns of a header that has all names of a schema."""
        lines = self._lines()
        header = lines.pop(0) if lines else []
        _check_header(header, schema, self.path)
        if set(map(len, lines)) - {len(header)}:
            row = next(row for row, line in enumerate(lines) if len(line) != len(header))
            raise self.wrong(row, f"expected {len(header)} cells, got {len(lines[row])}")
        return {name: list(map(itemgetter(header.index(name)), lines)) for name in names}

    def _lines(self) -> list[list[str]]:
        # As we write it: this takes half the time.
        if '"' not in self.text and "\r" not in self.text:
            return [line.split(",") for line in self.text.split("\n") if line]
        reader = self._reader()
        try:
            return list(filter(None, reader))
        except csv.Error as error:
            raise _wrong(self.path, reader.line_num, str(error)) from error

    def wrong(self, row: int, what: str) -> RecordError:
        """Returns the error for a row; only here its line is looked up, the first being 1."""
        reader = self._reader()
        with suppress(csv.Error):  # a cell may be longer than the reader takes
            next(islice(filter(None, reader), row + 1, None))
        return _wrong(self.path, reader.line_num, what)

    def _reader(self) -> Any:
        return csv.reader(io.StringIO(self.text, newline=""), strict=True)


def _check_header(header: list[str], schema: Iterable[str], path: Path) -> None:
    missing = [name for name in schema if name not in header]
    if missing:
        raise _wrong(path, 1, f"the header '{','.join(header)[:40]}' lacks {', '.join(missing)}")


def _checked(name: str, texts: list[str], kind: TypeAdapter[Any], table: _Table) -> list[Any]:
    known: list[str | None] = [*texts]
    if name != "broken_by" and "" in texts:
        known = [text or None for text in texts]
    try:
        checked: list[Any] = kind.validate_python(known)
    except ValidationError as error:
        first = error.errors()[0]
        row = int(first["loc"][0])
        raise table.wrong(row, f"{name}: {first['msg']}, got '{texts[row]}'") from error
    return checked


def _check_indices(indices: Sequence[int], table: _Table) -> None:
    if len(set(indices)) == len(indices):
        return
    index, _ = Counter(indices).most_common(1)[0]
    again = indices.index(index, indices.index(index) + 1)
    raise table.wrong(again, f"example {index} is there a second time")


def _wrong(path: Path, line: int, what: str) -> RecordError:
    shown = printable(what)
    return RecordError(
        f"'{path}', line {line}: {shown[:200]}{'...' if len(shown) > 200 else ''}; {_ADVICE}"
    )
