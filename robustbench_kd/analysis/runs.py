"""Finds stored runs and reads them with their examples."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robustbench_kd.core.errors import IncompleteError, RecordError, RkdError, UsageError
from robustbench_kd.core.examples import read_examples
from robustbench_kd.core.records import Accuracy, ExampleRow, Identity, RunRecord
from robustbench_kd.core.rundir import EXAMPLES, RECORD, read_record
from robustbench_kd.core.text import printable

Key = tuple[str, str]

_CLOSE = 1e-9  # accuracies are written with every digit, so that only rounding may part them


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
        raise IncompleteError(f"'{folder}' is unfinished: run the same 'rkd eval' again to resume it")
    return with_examples(folder, record)


def with_examples(folder: Path, record: RunRecord) -> Run:
    """Reads the examples of a complete run; raises `RecordError` where they are damaged or contradict the record."""
    run = Run(folder, record, {row.index: row for row in read_examples(folder / EXAMPLES)})
    _check(run)
    return run


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

    A folder may be named from `results` on. Raises `UsageError` unless exactly one run is meant, and like `read_run`.
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
        raise UsageError(f"'{text}' holds {len(found)} runs: name one of {known}{', ...' if len(found) > 10 else ''}")
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


def _check(run: Run) -> None:
    """Raises `RecordError` where examples and record contradict each other."""
    path, record, rows = run.folder / EXAMPLES, run.record, run.examples.values()
    if record.clean is None or record.robust is None:
        raise RecordError(
            f"'{run.folder / RECORD}' calls itself complete but lacks accuracies; delete it and run again"
        )
    if len(rows) != record.clean.n:
        raise RecordError(f"'{path}': expected {record.clean.n} examples as in {RECORD}, got {len(rows)}")
    if run.randomized:
        return
    known = {"", *(stage.stage for stage in record.stages)}
    for row in rows:
        if row.broken_by not in known or row.robust == bool(row.broken_by):
            what = f"{'' if row.robust else 'not '}robust, broken by '{printable(row.broken_by)}'"
            raise RecordError(f"'{path}': example {row.index} is {what}; delete its folder and run again")
    _check_share(run, "clean", record.clean, sum(row.clean_correct for row in rows))
    _check_share(run, "robust", record.robust, sum(row.robust for row in rows))


def _check_share(run: Run, kind: str, told: Accuracy, counted: int) -> None:
    share = counted / max(1, len(run.examples))
    if not abs(told.value - share) < _CLOSE:
        raise RecordError(
            f"'{run.folder}': {RECORD} tells of {told.value:.4g} {kind} accuracy, {EXAMPLES} of {share:.4g}: the files "
            "are of different runs; delete the folder and run again"
        )
