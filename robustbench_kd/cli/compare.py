"""Compare two stored runs image by image."""

from pathlib import Path

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import UsageError


@click.command("compare")
@click.argument("a")
@click.argument("b")
@_options.results
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown"]),
    default="table",
    show_default=True,
    help="How to write it: a table for the terminal, or Markdown for a comment.",
)
@_options.as_json
def command(a: str, b: str, results: Path, *, form: str, as_json: bool) -> None:
    """Compares run B with run A on the same images: lost and gained ones, and whether it is chance.

    A and B are run directories, their run.json, folders of models with one run each, or beginnings
    of run ids under --results. Both must have the same data, examples, threat, suite and engine;
    otherwise the exit code is 4.

    Marks: + better, - worse, ~ not significant at 5 %, = no example differs. The p-value is
    McNemar's exact one, the interval a 95 % one of the difference (Bonett and Price 2012).

    \b
    Examples:
      rkd compare results/teacher results/student
      rkd compare 97808d4 a0b44a8 --format markdown
    """
    from robustbench_kd.analysis import compare as comparisons
    from robustbench_kd.analysis import markdown
    from robustbench_kd.analysis.runs import find_run
    from robustbench_kd.cli import _changes, _console

    if as_json and form == "markdown":
        raise UsageError("expected one of --json and --format markdown, got both: leave one out")
    found = comparisons.compare(find_run(a, results), find_run(b, results))
    if as_json:
        _console.write_json(comparisons.as_json(found))
    elif form == "markdown":
        _console.write(markdown.comparison(found).rstrip("\n"))
    else:
        _changes.show_comparison(found)
