"""Shows running and finished evaluations."""

import time

from robustbench_kd.cli import _console
from robustbench_kd.engine.evaluate import Outcome
from robustbench_kd.engine.progress import Observer, Progress


def observer(line: _console.Line, label: str) -> Observer:
    """Returns an observer that shows stage, robust accuracy so far, passes per second and time left."""
    start = time.monotonic()

    def show(progress: Progress) -> None:
        rate = progress.passes / max(time.monotonic() - start, 1e-3)
        left = _console.duration(progress.passes_left / max(rate, 1e-3))
        details = f"robust {progress.robust / progress.examples:.1%}  {rate:,.0f} passes/s  at most {left} left"
        line.show(f"{label} {progress.stage}", progress.decided, progress.total, details)

    return show


def announce(outcome: Outcome) -> None:
    """Says on standard error where a run went and what was found."""
    how = "stored result" if outcome.stored else f"done in {_console.duration(outcome.record.seconds)}"
    identity = outcome.record.identity
    _console.say(f"{identity.model} {identity.norm}:{identity.eps_text}: {how}, {outcome.folder}", "dim")
    for finding in outcome.record.findings:
        _console.say_finding(finding)


def report(outcomes: list[Outcome], *, as_json: bool) -> None:
    """Writes the results to standard output, as a table for a person or as JSON for a machine."""
    if as_json:
        _console.write_json([outcome.record.model_dump(mode="json") for outcome in outcomes])
        return
    columns = {"model": "left", "threat": "left", "n": "right", "clean %": "right", "robust %": "right"}
    columns |= {"suite": "left", "verdict": "left", "passes": "right", "time": "right"}
    table = _console.table("", columns)
    for record in (outcome.record for outcome in outcomes):
        identity = record.identity
        table.add_row(
            _console.plain(identity.model),
            f"{identity.norm}:{identity.eps_text}",
            str(identity.examples),
            _console.percent(record.clean),
            _console.percent(record.robust),
            identity.suite,
            _console.verdict(record.verdict),
            f"{record.forwards + record.backwards:,}",
            _console.duration(record.seconds),
        )
    _console.show_table(table)
