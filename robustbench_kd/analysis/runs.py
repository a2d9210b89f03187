"""Finds stored runs and reads them with their examples."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robustbench_kd.core.agreement import checked_columns, checked_record, in_its_place
from robustbench_kd.core.errors import RecordError, RkdError, UsageError
from robustbench_kd.core.records import Identity, RunRecord
from robustbench_kd.core.rows import ExampleRow
from robustbench_kd.core.rundir import RECORD, read_record
from robustbench_kd.core.text import printable

Key = tuple[str, str]


@dataclass(frozen=True)
class Verdicts:
    """The label of each example, and whether it survives all attacks, by index."""

    labels: dict[int, int]
    robust: dict[int, bool]


@dataclass(frozen=True)
class Run:
    """A complete run: where it lies, its record, and its examples by index."""

    folder: Path
    record: RunRecord
    examples: dict[int, ExampleRow]

    @property
    def identity(self) -> Identity:
        """What was asked."""
        return self.record.identity

    @property
    def model(self) -> str:
        """The model's name; printable."""
        return self.identity.model

    @property
    def randomized(self) -> bool:
        """Whether the accuracies are expectations.

        An example then counts as robust where its most frequent answer is right.
        """
        return self.record.robust_draws is not None

    @property
    def key(self) -> Key:
        """What two runs share that may be compared over time: model and protocol."""
        return self.model, self.identity.protocol_hash()


def read_run(folder: Path) -> Run:
    """Reads a run directory.

    Raises `RecordError` for a damaged one and `IncompleteError` for an unfinished one.
    """
    return with_examples(folder, checked_record(folder))


def with_examples(folder: Path, record: RunRecord) -> Run:
    """Reads the examples of a complete run.

    Raises `RecordError` where they are damaged or contradict the record.
    """
    columns = checked_columns(folder, record, ExampleRow._fields[1:])
    rows = map(ExampleRow, *columns.values())
    return Run(folder, record, dict(zip(columns["index"], rows, strict=True)))


def read_verdicts(folder: Path, record: RunRecord) -> Verdicts:
    """Reads labels and verdicts of a complete run and no more; raises like `with_examples`."""
    columns = checked_columns(folder, record, ("label",))
    index = columns["index"]
    return Verdicts(
        labels=dict(zip(index, columns["label"], strict=True)),
        robust=dict(zip(index, columns["robust"], strict=True)),
    )


def read_runs(results: Path) -> tuple[list[Run], list[str]]:
    """Reads every run under a folder, sorted, and says what is wrong with the unreadable ones."""
    runs, problems = [], []
    for path in sorted(results.glob(f"*/*/{RECORD}")):
        try:
            run = read_run(path.parent)
            in_its_place(run.folder, run.record)
            runs.append(run)
        except RkdError as error:
            problems.append(str(error))
    return runs, problems


def find_run(text: str, results: Path) -> Run:
    """Reads the run that a person named.

    The name is its directory, its `run.json`, the folder of a model or the beginning of a run id;
    a folder may be relative to `results`. Raises `UsageError` unless exactly one run is meant,
    and like `read_run`.
    """
    named = [*_at(Path(text)), *_at(results / text)] or _by_id(text, results)
    found = sorted({folder.resolve(): folder for folder in named}.values())
    if not found:
        raise UsageError(
            f"there is no run '{text}': expected a run directory, its run.json, a model's folder, "
            f"or the beginning of a run id under '{results}'"
        )
    if len(found) > 1:
        known = ", ".join(map(_described, found[:10]))
        if len(found) > 10:
            known += ", ..."
        raise UsageError(f"'{text}' holds {len(found)} runs: name one of {known}")
    return read_run(found[0])


def threat(identity: Identity) -> str:
    """Returns the threat as it was written, `linf:8/255`; printable."""
    return printable(f"{identity.norm}:{identity.eps_text}")


def _at(path: Path) -> Iterator[Path]:
    """Yields the run directories that a path stands for."""
    if path.is_file() and path.name == RECORD:
        yield path.parent
    elif (path / RECORD).is_file():
        yield path
    elif path.is_dir():
        yield from (record.parent for record in path.glob(f"*/{RECORD}"))


def _by_id(text: str, results: Path) -> list[Path]:
    records = results.glob(f"*/*/{RECORD}")
    return [record.parent for record in records if text and record.parent.name.startswith(text)]


def _described(folder: Path) -> str:
    try:
        return f"{folder.name} ({threat(read_record(folder / RECORD).identity)})"
    except RecordError:
        return f"{folder.name} (damaged)"
