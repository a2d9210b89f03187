"""Shows running and finished evaluations."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from robustbench_kd.cli import _console
from robustbench_kd.core.engines import engine_traits
from robustbench_kd.core.records import Claim, Detection, Draws, RunRecord
from robustbench_kd.core.rundir import ADVERSARIAL
from robustbench_kd.core.text import duration, percent
from robustbench_kd.engine.evaluate import Outcome
from robustbench_kd.engine.run.progress import Observer, Progress
from robustbench_kd.engine.run.run import RESUMED


def observer(line: _console.Line, label: str) -> Observer:
    """Returns an observer that shows stage, accuracy so far, time left and passes per second.

    Time and speed are known from the second call on: loading and the first passes tell nothing
    about the attacks.
    """
    start: tuple[float, int] | None = None

    def show(progress: Progress) -> None:
        nonlocal start
        start = start or (time.monotonic(), progress.passes)
        seconds = max(time.monotonic() - start[0], 1e-3)
        rate = (progress.passes - start[1]) / seconds
        details = f"robust {progress.robust / progress.examples:.1%}"
        if rate > 0:
            left = duration(progress.passes_left / rate)
            details += f"  at most {left} left  {rate:,.0f} passes/s"
        line.show(f"{label} {progress.stage}", progress.decided, progress.total, details)

    return show


def announce(outcome: Outcome) -> None:
    """Says on standard error where a run is stored and what was found."""
    origin = "stored result"
    if not outcome.stored:
        origin = f"done in {duration(outcome.record.seconds)}"
        resumed = outcome.record.environment.get(RESUMED)
        origin += f", resumed {resumed}" if resumed else ""
    if outcome.again:
        lacked = "images" if (outcome.folder / ADVERSARIAL).exists() else "checks"
        origin = f"the earlier result lacked {lacked}, {origin}"
    identity = outcome.record.identity
    threat = f"{identity.norm}:{identity.eps_text}"
    _console.say(f"{identity.model} {threat}: {origin}, {outcome.folder}", "dim")
    for finding in outcome.record.findings:
        _console.say_finding(finding)


def report(outcomes: list[Outcome], *, as_json: bool) -> None:
    """Writes the results to standard output, as a table or as JSON."""
    records = [outcome.record for outcome in outcomes]
    if as_json:
        _console.write_json([record.model_dump(mode="json") for record in records])
        return

    columns = [column for column in _COLUMNS if any(column.cell(record) for record in records)]
    table = _console.table("", {column.heading: column.side for column in columns})
    for record in records:
        table.add_row(*(column.cell(record) for column in columns))
    _console.show_table(table, spare=("passes", "time"))

    notes: list[str] = []
    for record in records:
        notes += [note for note in _notes(record) if note not in notes]
    for note in notes:
        _console.write(note)


@dataclass(frozen=True)
class _Column:
    """A column of the table; it is left out if it is empty for all runs."""

    heading: str
    side: str
    cell: Callable[[RunRecord], str]


def _gap(record: RunRecord) -> str:
    """Returns by how many points adaptive attacks lowered the accuracy."""
    if record.standard is None or record.robust is None:
        return ""
    return percent(record.standard.value - record.robust.value)


def _robust(record: RunRecord) -> str:
    return _console.accuracy_text(record.standard or record.robust)


def _adaptive(record: RunRecord) -> str:
    if record.standard:
        return _console.accuracy_text(record.robust)
    return ""


def _every_draw(record: RunRecord) -> str:
    if record.robust_draws is None:
        return ""
    return percent(record.robust_draws.all_correct.value)


def _majority(record: RunRecord) -> str:
    if record.robust_draws is None:
        return ""
    return percent(record.robust_draws.majority.value)


def _examples(record: RunRecord) -> str:
    return str(record.clean.n if record.clean else record.identity.examples)


def _suite(record: RunRecord) -> str:
    suite = record.identity.suite
    return suite if record.missed is None else f"{suite} (fast)"


_COLUMNS = (
    _Column("model", "left", lambda record: _console.plain(record.identity.model)),
    _Column("threat", "left", lambda record: f"{record.identity.norm}:{record.identity.eps_text}"),
    _Column("n", "right", _examples),
    _Column("clean %", "right", lambda record: _console.accuracy_text(record.clean)),
    _Column("robust %", "right", _robust),
    _Column("adaptive %", "right", _adaptive),
    _Column("gap", "right", _gap),
    _Column("every draw %", "right", _every_draw),
    _Column("majority %", "right", _majority),
    _Column("suite", "left", _suite),
    _Column("verdict", "left", lambda record: _console.verdict(record.verdict)),
    _Column("passes", "right", lambda record: f"{record.passes:,}"),
    _Column("time", "right", lambda record: duration(record.seconds)),
)


def _notes(record: RunRecord) -> Iterator[str]:
    """Yields what a reader must know about the numbers of a run."""
    model = record.identity.model
    if record.missed is not None:
        points = percent(record.missed)
        yield (
            f"{model}: a fast run; its samples could have missed {points} points (95 % confidence)"
        )
    if record.claim:
        yield f"{model}: {_settled(record.claim)}"
    if record.robust_draws:
        yield f"{model}: {_expected(record, record.robust_draws)}"
    if record.detection:
        yield f"{model}: {_rejection(record.detection)}"


def _expected(record: RunRecord, draws: Draws) -> str:
    basis = f"{draws.draws} fresh draws of each image"
    if draws.exact:
        basis = f"all {draws.draws} members"
    if not engine_traits(record.identity.engine).one_draw_breaks:
        return f"accuracies are expected ones, by {basis}"
    expected = _console.accuracy_text(draws.mean)
    return (
        f"robust % is the package's number, of single draws; {expected} % are expected on its "
        f"images, by {basis}"
    )


def _settled(claim: Claim) -> str:
    result = "holds" if claim.holds else "is refuted"
    return (
        f"{claim.text} {result}, known after {claim.evaluated} of {claim.population} examples in "
        f"random order (wrong at most {claim.mistakes:.0%} of the time)"
    )


def _rejection(found: Detection) -> str:
    clean = percent(found.clean_rejected.value)
    attacked = percent(found.attacked_rejected.value)
    left = percent(found.robust_accepted.value)
    text = (
        f"rejects {clean} % of clean and {attacked} % of attacked images, {left} % are right and "
        "accepted under attack"
    )
    oblivious = found.oblivious.successes.tpr_5
    joint = found.joint.successes.tpr_5
    if oblivious is None or joint is None:
        return text
    return (
        f"{text}; TPR at FPR 5 %: {percent(oblivious.value)} % oblivious, "
        f"{percent(joint.value)} % joint"
    )
