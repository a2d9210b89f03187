"""Finds stored runs and reads them with their examples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_kd.core.errors import IncompleteError, RecordError, RkdError, UsageError
from robustbench_kd.core.examples import read_columns
from robustbench_kd.core.records import Accuracy, Identity, RunRecord
from robustbench_kd.core.rows import ExampleRow
from robustbench_kd.core.rundir import EXAMPLES, RECORD, read_record
from robustbench_kd.core.text import printable

Key = tuple[str, str]

_SHARED = ("clean_correct", "robust", "broken_by")  # columns that the record repeats as accuracies
_CLOSE = 1e-9  # accuracies are written with every digit, so that only rounding may part them


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
    record = read_record(folder / RECORD)
    if record.status != "complete":
        raise IncompleteError(
            f"'{folder}' is unfinished: run the same 'rkd eval' again to resume it"
        )
    return with_examples(folder, record)


def with_examples(folder: Path, record: RunRecord) -> Run:
    """Reads the examples of a complete run.

    Raises `RecordError` where they are damaged or contradict the record.
    """
    columns = _consistent(folder, record, ExampleRow._fields[1:])
    rows = map(ExampleRow, *columns.values())
    return Run(folder, record, dict(zip(columns["index"], rows, strict=True)))


def read_verdicts(folder: Path, record: RunRecord) -> Verdicts:
    """Reads labels and verdicts of a complete run and no more; raises like `with_examples`."""
    columns = _consistent(folder, record, ("label", *_SHARED))
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
            runs.append(read_run(path.parent))
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


def _consistent(folder: Path, record: RunRecord, names: Sequence[str]) -> dict[str, list[Any]]:
    """Reads columns of the examples, `_SHARED` among them.

    Raises `RecordError` where they and the record contradict each other.
    """
    if record.clean is None or record.robust is None:
        raise RecordError(
            f"'{folder / RECORD}' calls itself complete but lacks accuracies; delete it and run "
            "again"
        )
    path = folder / EXAMPLES
    columns = read_columns(path, *names)
    got = len(columns["index"])
    if got != record.clean.n:
        raise RecordError(f"'{path}': expected {record.clean.n} examples as in {RECORD}, got {got}")
    if record.robust_draws is None:  # otherwise the accuracies are expectations
        _check_stages(path, record, columns)
        _check_accuracy(folder, "clean", record.clean, columns["clean_correct"])
        _check_accuracy(folder, "robust", record.robust, columns["robust"])
    return columns


def _check_stages(path: Path, record: RunRecord, columns: Mapping[str, Sequence[Any]]) -> None:
    known = {stage.stage for stage in record.stages}
    rows = zip(columns["index"], columns["robust"], columns["broken_by"], strict=True)
    for index, robust, broken_by in rows:
        consistent = not broken_by if robust else broken_by in known
        if not consistent:
            state = "robust" if robust else "not robust"
            raise RecordError(
                f"'{path}': example {index} is {state}, broken by '{printable(broken_by)}'; "
                "delete its folder and run again"
            )


def _check_accuracy(folder: Path, kind: str, recorded: Accuracy, counted: Sequence[bool]) -> None:
    fraction = sum(counted) / max(1, len(counted))
    if not abs(recorded.value - fraction) < _CLOSE:
        raise RecordError(
            f"'{folder}': {RECORD} has {recorded.value:.4g} {kind} accuracy, {EXAMPLES} has "
            f"{fraction:.4g}: the files are of different runs; delete the folder and run again"
        )
