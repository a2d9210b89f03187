"""Holds a stored run against what can be computed: its own parts, its folder, the files beside it.

Nothing is believed that follows from something else: a record is a file like any other, and may
have been copied, edited or damaged.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robustbench_kd.core.contradictions import contradictions
from robustbench_kd.core.errors import IncompleteError, RecordError
from robustbench_kd.core.examples import read_columns, read_draws
from robustbench_kd.core.records import Accuracy, RunRecord
from robustbench_kd.core.rundir import DRAWS, EXAMPLES, RECORD, read_finished
from robustbench_kd.core.text import printable

_CLOSE = 1e-9  # accuracies are written with every digit, so that only rounding may part them
_COUNTED = ("clean_correct", "robust", "broken_by")  # columns that accuracies follow from
_ADVICE = "delete the folder and run again"


class _Counted(NamedTuple):
    """An accuracy of the record, and the fraction that the tables beside it give."""

    name: str
    stored: Accuracy
    fraction: float


def checked_record(folder: Path) -> RunRecord:
    """Reads the `run.json` of a finished run.

    Raises `RecordError` where it is damaged or contradicts itself, `IncompleteError` where the run
    is unfinished.
    """
    record = read_finished(folder)
    problem = next(contradictions(record), "")
    if problem:
        raise RecordError(f"'{folder / RECORD}' contradicts itself: {problem}; {_ADVICE}")
    return record


def in_its_place(folder: Path, record: RunRecord) -> RunRecord:
    """Returns a record whose folder has the name of its run; raises `RecordError` for a copy."""
    name = folder.absolute().name
    if record.run_id != name:
        raise RecordError(
            f"'{folder / RECORD}' is a record of '{record.identity.model}', run {record.run_id}, "
            f"not of the run '{printable(name)}': remove it"
        )
    return record


def believed_record(folder: Path) -> RunRecord:
    """Returns the record of a finished run that follows from its files and lies in its folder.

    Raises like `checked_record`, `in_its_place` and `checked_columns`.
    """
    record = in_its_place(folder, checked_record(folder))
    checked_columns(folder, record)
    return record


def stored_record(folder: Path) -> RunRecord | None:
    """Returns the record of a finished run, or None where there is none yet.

    Raises `RecordError` where it is of another run, or what it says does not follow from its files.
    """
    if not (folder / RECORD).exists():
        return None
    try:
        return believed_record(folder)
    except IncompleteError:
        return None


def checked_columns(
    folder: Path, record: RunRecord, names: Sequence[str] = ()
) -> dict[str, list[Any]]:
    """Returns columns of the examples of a complete run, and those that accuracies follow from.

    Raises `RecordError` where a file is damaged or the accuracies of the record do not follow.
    """
    if record.clean is None or record.robust is None:
        raise RecordError(
            f"'{folder / RECORD}' calls itself complete but lacks accuracies; {_ADVICE}"
        )
    path = folder / EXAMPLES
    columns = read_columns(path, *dict.fromkeys([*names, *_COUNTED]))
    got = len(columns["index"])
    if got != record.clean.n:
        raise RecordError(f"'{path}': expected {record.clean.n} examples as in {RECORD}, got {got}")
    if record.robust_draws is None:
        _check_stages(path, record, columns)
        counted = _of_examples(record, columns)
    else:
        counted = _of_draws(record, columns, read_draws(folder / DRAWS))

    for name, stored, fraction in counted:
        if not abs(stored.value - fraction) < _CLOSE:
            raise RecordError(
                f"'{folder}': {RECORD} has {stored.value:.4g} {name} accuracy, its tables have "
                f"{fraction:.4g}: the files are of different runs; {_ADVICE}"
            )
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
                f"{_ADVICE}"
            )


def _of_examples(record: RunRecord, columns: Mapping[str, Sequence[Any]]) -> Iterator[_Counted]:
    """Yields the accuracies of a deterministic defence: clean, after each stage, in the end."""
    n = len(columns["index"])
    if record.clean:
        yield _Counted("clean", record.clean, sum(columns["clean_correct"]) / n)
    if record.robust:
        yield _Counted("robust", record.robust, sum(columns["robust"]) / n)

    broken = Counter(columns["broken_by"])
    left = n
    standard: list[_Counted] = []
    for stage in record.stages:
        left -= broken[stage.stage]
        yield _Counted(stage.stage, stage.accuracy, left / n)
        if stage.stage in record.identity.attacks:
            standard.append(_Counted("standard", stage.accuracy, left / n))
    if record.standard and standard:
        yield standard[-1]._replace(stored=record.standard)


def _of_draws(
    record: RunRecord, columns: Mapping[str, Sequence[Any]], drawn: Mapping[str, Sequence[Any]]
) -> Iterator[_Counted]:
    """Yields the accuracies of a randomized defence; those after each stage are not in tables."""
    n = len(columns["index"])
    if drawn["index"] != columns["index"]:
        raise RecordError(
            f"'{DRAWS}' of run {record.run_id} has other examples than '{EXAMPLES}'; {_ADVICE}"
        )
    parts = (
        ("clean", record.clean_draws, "clean_wrong", "clean_correct"),
        ("robust", record.robust_draws, "wrong", "robust"),
    )
    for name, draws, wrong, right in parts:
        if draws:
            rates = drawn[wrong]
            yield _Counted(f"mean {name}", draws.mean, sum(1 - rate for rate in rates) / n)
            yield _Counted(f"all {name}", draws.all_correct, rates.count(0) / n)
            yield _Counted(f"majority {name}", draws.majority, sum(columns[right]) / n)
