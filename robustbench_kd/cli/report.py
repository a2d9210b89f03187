"""Write one HTML page with the tables, figures and findings of stored runs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from robustbench_kd.analysis.flips import Flips


@click.command("report")
@click.argument("results", type=click.Path(path_type=Path), default=Path("results"))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write it.  [default: RESULTS/report.html]",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Results to compare with: images lost and gained by model and protocol.",
)
def command(results: Path, *, output: Path | None, baseline: Path | None) -> None:
    """Writes a self-contained page about the runs under RESULTS and prints its path.

    It has leaderboards that sort at a click, clean against robust accuracy, the effect and cost of
    each attack, accuracy by class, security curves, findings with advice, and the command that
    repeats each run. It works offline and in print.

    \b
    Examples:
      rkd report results
      rkd report results --baseline results-before --output report.html
    """
    from robustbench_kd.analysis.report import read_report, render
    from robustbench_kd.cli import _console
    from robustbench_kd.core.files import write_text

    report = read_report(results, _flips(results, baseline) if baseline else None)
    for reason in report.left_out:
        _console.say(f"left out: {reason}", "yellow")
    if not report.sections:
        _console.say(f"there is no finished run under '{results}'", "yellow")
    path = output or results / "report.html"
    write_text(path, render(report))
    _console.write(str(path))


def _flips(results: Path, baseline: Path) -> "Flips":
    from robustbench_kd.analysis.flips import read_flips

    return read_flips(results, baseline)
