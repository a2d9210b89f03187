"""Shows running and finished evaluations."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from robustbench_kd.cli import _console
from robustbench_kd.core.records import Accuracy, Claim, Detection, RunRecord
from robustbench_kd.core.text import duration
from robustbench_kd.engine.evaluate import Outcome
from robustbench_kd.engine.run.progress import Observer, Progress


def observer(line: _console.Line, label: str) -> Observer:
    """Returns an observer that shows stage, robust accuracy so far, time left and passes per second.

    The last two are known from the second call on: loading and the first passes tell nothing about
    the attacks.
    """
    start: tuple[float, int] | None = None

    def show(progress: Progress) -> None:
        nonlocal start
        start = start or (time.monotonic(), progress.passes)
        rate = (progress.passes - start[1]) / max(time.monotonic() - start[0], 1e-3)
        details = f"robust {progress.robust / progress.examples:.1%}"
        if rate > 0:
            details += (
                f"  at most {duration(progress.passes_left / rate)} left  {rate:,.0f} passes/s"
            )
        line.show(f"{label} {progress.stage}", progress.decided, progress.total, details)

    return show


def announce(outcome: Outcome) -> None:
    """Says on standard error where a run went and what was found."""
    how = "stored result" if outcome.stored else f"done in {duration(outcome.record.seconds)}"
    how = f"the earlier result lacked images, {how}" if outcome.again else how
    identity = outcome.record.identity
    _console.say(
        f"{identity.model} {identity.norm}:{identity.eps_text}: {how}, {outcome.folder}", "dim"
    )
    for finding in outcome.record.findings:
        _console.say_finding(finding)


def report(outcomes: list[Outcome], *, as_json: bool) -> None:
    """Writes the results to standard output, as a table for a person or as JSON for a machine."""
    records = [outcome.record for outcome in outcomes]
    if as_json:
        _console.write_json([record.model_dump(mode="json") for record in records])
        return
    columns = [column for column in _COLUMNS if any(column.cell(record) for record in records)]
    table = _console.table("", {column.heading: column.side for column in columns})
    for record in records:
        table.add_row(*(column.cell(record) for column in columns))
    _console.show_table(table, spare=("passes", "time"))
    for note in dict.fromkeys(note for record in records for note in _notes(record)):
        _console.write(note)


@dataclass(frozen=True)
class _Column:
    """A column of the table; it is left out where no run has anything to say in it."""

    heading: str
    side: str
    cell: Callable[[RunRecord], str]


def _gap(record: RunRecord) -> str:
    """Returns by how many points adaptive attacks lowered the accuracy."""
    if record.standard is None or record.robust is None:
        return ""
    return f"{100 * (record.standard.value - record.robust.value):.1f}"


def _robust(record: RunRecord) -> str:
    return _console.percent(record.standard or record.robust)


def _draws(record: RunRecord, rule: str) -> str:
    """Returns what is left of a randomized defence by a rule that is stricter, or milder, than the mean of draws."""
    if record.robust_draws is None:
        return ""
    found: Accuracy = getattr(record.robust_draws, rule)
    return f"{100 * found.value:.1f}"


def _suite(record: RunRecord) -> str:
    return f"{record.identity.suite} (fast)" if record.missed is not None else record.identity.suite


_COLUMNS = (
    _Column("model", "left", lambda record: _console.plain(record.identity.model)),
    _Column("threat", "left", lambda record: f"{record.identity.norm}:{record.identity.eps_text}"),
    _Column(
        "n",
        "right",
        lambda record: str(record.clean.n if record.clean else record.identity.examples),
    ),
    _Column("clean %", "right", lambda record: _console.percent(record.clean)),
    _Column("robust %", "right", _robust),
    _Column(
        "adaptive %",
        "right",
        lambda record: _console.percent(record.robust) if record.standard else "",
    ),
    _Column("gap", "right", _gap),
    _Column("every draw %", "right", lambda record: _draws(record, "all_correct")),
    _Column("majority %", "right", lambda record: _draws(record, "majority")),
    _Column("suite", "left", _suite),
    _Column("verdict", "left", lambda record: _console.verdict(record.verdict)),
    _Column("passes", "right", lambda record: f"{record.forwards + record.backwards:,}"),
    _Column("time", "right", lambda record: duration(record.seconds)),
)


def _notes(record: RunRecord) -> list[str]:
    """Returns what a reader must know about the numbers of a run."""
    notes = []
    if record.missed is not None:
        notes.append(
            f"{record.identity.model}: a fast run; its samples could have missed {100 * record.missed:.1f} points "
            "(95 % confidence)"
        )
    if record.claim:
        notes.append(f"{record.identity.model}: {_settled(record.claim)}")
    drawn = record.robust_draws
    if drawn:
        basis = (
            f"all {drawn.draws} members"
            if drawn.exact
            else f"{drawn.draws} fresh draws of each image"
        )
        how = f"accuracies are expected ones, by {basis}"
        if record.identity.engine == "autoattack":
            expected = _console.percent(drawn.mean)
            how = f"robust % is the package's number, of single draws; {expected} % are expected on its images, by {basis}"
        notes.append(f"{record.identity.model}: {how}")
    if record.detection:
        notes.append(f"{record.identity.model}: {_rejection(record.detection)}")
    return notes


def _settled(claim: Claim) -> str:
    known = f"known after {claim.evaluated} of {claim.population} examples in random order"
    return f"{claim.text} {'holds' if claim.holds else 'is refuted'}, {known} (wrong at most {claim.mistakes:.0%} of the time)"


def _rejection(found: Detection) -> str:
    clean, attacked, left = (
        f"{100 * one.value:.1f} %"
        for one in (found.clean_rejected, found.attacked_rejected, found.robust_accepted)
    )
    said = f"rejects {clean} of clean and {attacked} of attacked images, {left} are right and accepted under attack"
    oblivious, joint = found.oblivious.successes.tpr_5, found.joint.successes.tpr_5
    if oblivious is None or joint is None:
        return said
    return f"{said}; TPR at FPR 5 %: {100 * oblivious.value:.1f} % oblivious, {100 * joint.value:.1f} % joint"
