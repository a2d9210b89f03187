"""Finds stored runs and reads them with their examples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_kd.core.errors import IncompleteError, RecordError, RkdError, UsageError
from robustbench_kd.core.examples import read_columns
from robustbench_kd.core.records import Accuracy, ExampleRow, Identity, RunRecord
from robustbench_kd.core.rundir import EXAMPLES, RECORD, read_record
from robustbench_kd.core.text import printable

Key = tuple[str, str]

_TOLD = ("clean_correct", "robust", "broken_by")  # columns of which the record tells, too
_CLOSE = 1e-9  # accuracies are written with every digit, so that only rounding may part them


@dataclass(frozen=True)
class Verdicts:
    """The label of each example, and whether it stands against all attacks, by index."""

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
        """Whether the accuracies are expectations; an example then counts as robust where its most frequent answer is right."""
        return self.record.robust_draws is not None

    @property
    def key(self) -> Key:
        """What two runs share that may be compared over time: model and protocol."""
        return self.model, self.identity.protocol_hash()


def read_run(folder: Path) -> Run:
    """Reads a run directory; raises `RecordError` for a damaged one and `IncompleteError` for an unfinished one."""
    record = read_record(folder / RECORD)
    if record.status != "complete":
        raise IncompleteError(
            f"'{folder}' is unfinished: run the same 'rkd eval' again to resume it"
        )
    return with_examples(folder, record)


def with_examples(folder: Path, record: RunRecord) -> Run:
    """Reads the examples of a complete run; raises `RecordError` where they are damaged or contradict the record."""
    columns = _consistent(folder, record, ExampleRow._fields[1:])
    return Run(
        folder, record, dict(zip(columns["index"], map(ExampleRow, *columns.values()), strict=True))
    )


def read_verdicts(folder: Path, record: RunRecord) -> Verdicts:
    """Reads what became of the examples of a complete run and no more; raises like `with_examples`."""
    columns = _consistent(folder, record, ("label", *_TOLD))
    labels, robust = (
        dict(zip(columns["index"], columns[name], strict=True)) for name in ("label", "robust")
    )
    return Verdicts(labels, robust)


def read_runs(results: Path) -> tuple[list[Run], list[str]]:
    """Reads every run under a folder, sorted; also returns what is wrong with those that cannot be read."""
    runs, problems = [], []
    for path in sorted(results.glob(f"*/*/{RECORD}")):
        try:
            runs.append(read_run(path.parent))
        except RkdError as error:
            problems.append(str(error))
    return runs, problems


def find_run(text: str, results: Path) -> Run:
    """Reads the run that a person named: its directory, its `run.json`, a model's folder or a run id's beginning.

    A folder may be named from `results` on. Raises `UsageError` unless exactly one run is meant,
    and like `read_run`.
    """
    named = [*_at(Path(text)), *_at(results / text)] or _by_id(text, results)
    found = sorted({folder.resolve(): folder for folder in named}.values())
    if not found:
        raise UsageError(
            f"there is no run '{text}': expected a run directory, its run.json, a model's folder, or the beginning of a "
            f"run id under '{results}'"
        )
    if len(found) > 1:
        known = ", ".join(_described(folder) for folder in found[:10])
        raise UsageError(
            f"'{text}' holds {len(found)} runs: name one of {known}{', ...' if len(found) > 10 else ''}"
        )
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
    """Reads columns of the examples, `_TOLD` among them; raises `RecordError` where they and the record contradict each other."""
    if record.clean is None or record.robust is None:
        raise RecordError(
            f"'{folder / RECORD}' calls itself complete but lacks accuracies; delete it and run again"
        )
    path = folder / EXAMPLES
    columns = read_columns(path, *names)
    if len(columns["index"]) != record.clean.n:
        raise RecordError(
            f"'{path}': expected {record.clean.n} examples as in {RECORD}, got {len(columns['index'])}"
        )
    if record.robust_draws is None:  # otherwise the accuracies are expectations
        _check_stages(path, record, columns)
        _check_share(folder, "clean", record.clean, columns["clean_correct"])
        _check_share(folder, "robust", record.robust, columns["robust"])
    return columns


def _check_stages(path: Path, record: RunRecord, columns: Mapping[str, Sequence[Any]]) -> None:
    known = {"", *(stage.stage for stage in record.stages)}
    for index, robust, broken_by in zip(
        *(columns[name] for name in ("index", "robust", "broken_by")), strict=True
    ):
        if broken_by not in known or robust == bool(broken_by):
            what = f"{'' if robust else 'not '}robust, broken by '{printable(broken_by)}'"
            raise RecordError(
                f"'{path}': example {index} is {what}; delete its folder and run again"
            )


def _check_share(folder: Path, kind: str, told: Accuracy, counted: Sequence[bool]) -> None:
    share = sum(counted) / max(1, len(counted))
    if not abs(told.value - share) < _CLOSE:
        raise RecordError(
            f"'{folder}': {RECORD} tells of {told.value:.4g} {kind} accuracy, {EXAMPLES} of {share:.4g}: the files "
            "are of different runs; delete the folder and run again"
        )
