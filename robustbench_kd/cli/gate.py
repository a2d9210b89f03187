"""Fail where a model became worse than its baseline."""

import math
import os
import secrets
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import NotComparableError, RecordError, RegressionError, UsageError

if TYPE_CHECKING:
    from robustbench_kd.analysis.gate import Gate, Limits
    from robustbench_kd.analysis.runs import Run

_FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """The options of `rkd gate`."""

    results: Path
    baseline: Path
    tolerance: str
    hard_limit: str
    alpha: str
    update: bool
    junit: Path | None
    markdown: Path | None
    badge: Path | None
    as_json: bool

    def limits(self) -> "Limits":
        """Returns the drops that are allowed."""
        from robustbench_kd.analysis.gate import Limits

        alpha = _fraction(self.alpha, "--alpha")
        if not alpha:
            raise UsageError("expected --alpha above 0, got 0: nothing would ever be significant")
        tolerance = _fraction(self.tolerance, "--tolerance")
        hard_limit = _fraction(self.hard_limit, "--hard-limit") if self.hard_limit else None
        return Limits(tolerance, hard_limit, alpha)


@click.command("gate")
@click.argument("results", type=click.Path(path_type=Path), default=Path("results"))
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the runs to hold against.",
)
@click.option(
    "--tolerance",
    default="1%",
    show_default=True,
    help="Drop that is always allowed, such as 1% or 0.01.",
)
@click.option(
    "--hard-limit",
    default="",
    help="Drop that always fails, even where it could be chance (default: none).",
)
@click.option(
    "--alpha",
    default="5%",
    show_default=True,
    help="Chance that a gate fails although nothing became worse.",
)
@click.option(
    "--update", is_flag=True, help="Show the difference, then make RESULTS the new baseline."
)
@click.option("--junit", type=_FILE, help="Write JUnit XML to this file.")
@click.option("--markdown", type=_FILE, help="Write Markdown to this file, for a comment.")
@click.option("--badge", type=_FILE, help="Write shields.io JSON to this file.")
@_options.as_json
@_options.typed(GateOptions)
def command(options: GateOptions) -> None:
    """Holds every run under RESULTS against the same run of a baseline.

    The same run has the same model, data, threat, suite and engine. A robust or clean accuracy
    fails where its drop exceeds the tolerance and is more than chance (McNemar's exact one-sided
    test on the same images, adjusted for all accuracies by Holm), or where it exceeds the hard
    limit.

    All output is written before the exit code is decided: 0 passed, 1 a model became worse, 4 a run
    of the baseline is missing or cannot be judged. Models without a baseline pass, and are named.
    Under GitHub Actions a step summary and annotations are written, too. A baseline holds run.json
    and examples.csv of each run and belongs into git.

    \b
    Examples:
      rkd gate results --baseline baseline --update
      rkd gate results --baseline baseline --junit gate.xml --markdown comment.md
    """
    from robustbench_kd.analysis.baseline import one_each, read_baseline, update
    from robustbench_kd.analysis.gate import gate_runs
    from robustbench_kd.cli import _console

    limits = options.limits()
    results = options.results
    folder = options.baseline
    runs, problems = _runs(results, folder)
    known = read_baseline(folder)
    if not known and not options.update:
        raise RecordError(
            f"there is no run in the baseline '{folder}': make one with the same command and "
            "--update"
        )
    if not runs and options.update:
        raise RecordError(
            f"there is no run to make a baseline of in '{results}': run 'rkd eval' first"
        )

    new_baseline = one_each(runs, results) if options.update else {}
    gate = gate_runs(runs, problems, known, limits)
    _write(gate, options)
    _show(gate, as_json=options.as_json)
    if not options.update:
        _conclude(gate)
        return
    for line in update(folder, known, new_baseline):
        _console.say(line)
    if problems:
        raise NotComparableError(f"the baseline lacks what cannot be read: {problems[0]}")


def _fraction(text: str, option: str) -> float:
    """Reads `1%` or `0.01`, exactly as a count of examples over their number would be."""
    number = text.strip().removesuffix("%")
    is_percentage = number != text.strip()
    try:
        fraction = float(Decimal(number) / (100 if is_percentage else 1))
    except (ArithmeticError, ValueError):
        fraction = math.nan
    if 0 <= fraction < 1:
        return fraction

    hint = f": did you mean {number}%?" if not is_percentage and 1 <= fraction < 100 else ""
    raise UsageError(
        f"expected {option} as a percentage or a fraction below 1, such as 1% or 0.01, got "
        f"'{text}'{hint}"
    )


def _runs(results: Path, baseline: Path) -> tuple[list["Run"], list[str]]:
    from robustbench_kd.analysis.runs import read_runs

    if not results.is_dir():
        raise RecordError(
            f"there is no results folder '{results}': run 'rkd eval' first, or name another folder"
        )
    if results.resolve() == baseline.resolve():
        raise UsageError(
            f"expected a baseline apart from the results, got '{results}' for both: that would "
            "always pass"
        )
    return read_runs(results)


def _write(gate: "Gate", options: GateOptions) -> None:
    from robustbench_kd.analysis import badge, junit, markdown
    from robustbench_kd.core.files import write_text

    if options.junit:
        write_text(options.junit, junit.render(gate))
    if options.markdown:
        write_text(options.markdown, markdown.gate(gate))
    if options.badge:
        write_text(options.badge, badge.render(gate))

    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(markdown.gate(gate))


def _show(gate: "Gate", *, as_json: bool) -> None:
    from robustbench_kd.analysis import annotations
    from robustbench_kd.analysis import gate as gates
    from robustbench_kd.cli import _changes, _console

    if as_json:
        _console.write_json(gates.as_json(gate))
    elif os.environ.get("GITHUB_ACTIONS") == "true":
        before, after = annotations.fenced(secrets.token_hex(16))
        _console.write(before)
        _changes.show_gate(gate)
        _console.write("\n".join([after, *annotations.render(gate)]))
    else:
        _changes.show_gate(gate)


def _conclude(gate: "Gate") -> None:
    """Raises `RegressionError` for a drop, else `NotComparableError` for a gap."""
    if gate.failures:
        raise RegressionError(f"the gate {gate.headline}; {gate.failures[0].text}")
    if gate.gaps:
        raise NotComparableError(f"the gate is {gate.headline}; {gate.gaps[0].text}")
