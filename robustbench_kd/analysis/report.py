"""The report: one HTML page with tables, figures, findings, and how to repeat every run."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_kd.analysis.classes import Heat, by_class
from robustbench_kd.analysis.gallery import Gallery, galleries
from robustbench_kd.analysis.leaderboard import Board, rank, read_records
from robustbench_kd.analysis.page import render_page
from robustbench_kd.analysis.pictures import MOST_ROWS, Picture, costs, losses, trade_off
from robustbench_kd.analysis.repeat import Repetition, repetition
from robustbench_kd.analysis.security import Security, security
from robustbench_kd.analysis.table import Table, accuracy_text, legend, mode, tabulate
from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.examples import read_columns
from robustbench_kd.core.records import Finding, RunRecord, Severity, Verdict
from robustbench_kd.core.rundir import EXAMPLES
from robustbench_kd.core.text import duration
from robustbench_kd.core.verdicts import verdict_words

if TYPE_CHECKING:  # comparing loads statistics, which a report without a baseline does not need
    from robustbench_kd.analysis.flips import Flips

_SEVERITIES = [Severity.RED, Severity.YELLOW, Severity.INFO]
_VERDICTS: tuple[Verdict, ...] = ("consistent", "suspicious", "unreliable", "unchecked")


@dataclass(frozen=True)
class Remark:
    """A finding, and the models whose runs have it."""

    finding: Finding
    models: tuple[str, ...]


@dataclass(frozen=True)
class Details:
    """A run: stages (name, accuracy, passes, time), what is known about it, how to repeat it."""

    record: RunRecord
    verdict: str
    mode: str
    stages: tuple[tuple[str, str, str, str], ...]
    facts: tuple[tuple[str, str], ...]
    repetition: Repetition


@dataclass(frozen=True)
class Section:
    """Everything about one board."""

    table: Table
    trade_off: Picture | None
    losses: Picture
    costs: Picture
    heat: Heat | None
    remarks: tuple[Remark, ...]
    galleries: tuple[Gallery, ...]
    details: tuple[Details, ...]


@dataclass(frozen=True)
class Report:
    """What the page shows."""

    sections: tuple[Section, ...]
    verdicts: tuple[tuple[str, int], ...]
    curves: tuple[Security, ...]
    flips: "Flips | None"
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


def read_report(results: Path, flips: "Flips | None" = None) -> Report:
    """Reads everything under a results folder; `flips` is what changed since a baseline.

    What cannot be read is left out, and named. Raises `RecordError` where there is no such folder.
    """
    records, unread = read_records(results)
    boards = rank(records.values())
    left_out = [*unread]
    sections = []
    for board in boards:
        sections.append(_section(board, _folders(board, records), left_out))

    return Report(
        sections=tuple(sections),
        verdicts=_verdict_counts(records.values()),
        curves=tuple(security(records.values())),
        flips=flips,
        notes=tuple(legend(boards)),
        left_out=tuple(left_out),
    )


def render(report: Report) -> str:
    """Returns the page; names are escaped, whatever they hold."""
    return render_page("report.html", report=report)


def _verdict_counts(records: Iterable[RunRecord]) -> tuple[tuple[str, int], ...]:
    found = Counter(record.verdict for record in records)
    counts: list[tuple[str, int]] = []
    for name in _VERDICTS:
        if found[name]:
            counts.append((verdict_words(name), found[name]))
    return tuple(counts)


def _section(
    board: Board, folders: Sequence[tuple[RunRecord, Path]], left_out: list[str]
) -> Section:
    return Section(
        table=tabulate(board),
        trade_off=trade_off(board.records),
        losses=losses(board.records),
        costs=costs(board.records),
        heat=by_class(_verdicts(folders, left_out)),
        remarks=_remarks(board.records),
        galleries=galleries(folders, left_out),
        details=tuple(map(_details, board.records)),
    )


def _folders(board: Board, records: Mapping[Path, RunRecord]) -> list[tuple[RunRecord, Path]]:
    """Returns a board's first runs with their folders."""
    folders = {id(record): folder for folder, record in records.items()}
    return [(record, folders[id(record)]) for record in board.records[:MOST_ROWS]]


def _verdicts(
    runs: Sequence[tuple[RunRecord, Path]], left_out: list[str]
) -> list[tuple[str, list[int], list[bool]]]:
    """Reads labels and verdicts of runs; adds to `left_out` what cannot be read."""
    found = []
    for record, folder in runs:
        try:
            columns = read_columns(folder / EXAMPLES, "label", "robust")
        except RecordError as error:
            left_out.append(str(error))
        else:
            found.append((record.identity.model, columns["label"], columns["robust"]))
    return found


def _remarks(records: Sequence[RunRecord]) -> tuple[Remark, ...]:
    """Returns every finding once, the most severe first."""
    merged: dict[tuple[str, str, str, str], tuple[Finding, list[str]]] = {}
    for record in records:
        for finding in record.findings:
            key = finding.severity, finding.check, finding.message, finding.advice
            merged.setdefault(key, (finding, []))[1].append(record.identity.model)
    ordered = sorted(merged.values(), key=lambda pair: _SEVERITIES.index(pair[0].severity))
    return tuple(Remark(finding, tuple(models)) for finding, models in ordered)


def _details(record: RunRecord) -> Details:
    stages = []
    for stage in record.stages:
        accuracy = accuracy_text(stage.accuracy)
        stages.append((stage.stage, accuracy, f"{stage.passes:,}", duration(stage.seconds)))
    repeat = repetition(record.identity)
    words = verdict_words(record.verdict or "")
    return Details(record, words, mode(record), tuple(stages), _facts(record), repeat)


def _facts(record: RunRecord) -> tuple[tuple[str, str], ...]:
    identity = record.identity
    versions = [f"{name} {version}" for name, version in identity.versions.items()]
    known = {
        "run": record.run_id,
        "architecture": identity.architecture,
        "normalisation": identity.normalisation,
        "checkpoint": identity.checkpoint_sha256[:16],
        "code": identity.code_sha256[:16],
        "data": identity.data_fingerprint[:16],
        "seed": str(identity.seed),
        "precision": identity.precision,
        "versions": ", ".join(versions),
    }
    facts = []
    for name, text in (known | record.environment).items():
        if text:
            facts.append((name.replace("_", " "), text))
    return tuple(facts)
