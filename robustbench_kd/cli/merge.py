"""Write the records of runs whose shards are decided."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import IncompleteError, UsageError
from robustbench_kd.core.rundir import JOB

if TYPE_CHECKING:
    from robustbench_kd.engine.evaluate import Outcome


@click.command("merge")
@click.argument("results", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@_options.as_json
def command(results: tuple[Path, ...], *, as_json: bool) -> None:
    """Joins what 'rkd eval --shard I/N' has decided, from files alone, without model or data.

    RESULTS are folders of run directories, or run directories (default: results). The files are
    those that one process would have written. If a shard is missing, the other runs are merged all
    the same, and the exit code is 4.

    \b
    Examples:
      rkd merge results
      rkd eval net.toml --shard 1/2 & rkd eval net.toml --shard 2/2 & wait; rkd merge
    """
    from robustbench_kd.cli import _runs

    folders: list[Path] = []
    for folder in results or (Path("results"),):
        folders += [job.parent for job in sorted(folder.rglob(JOB))]
    if not folders:
        raise UsageError(
            "there is nothing to merge: expected folders in which 'rkd eval --shard I/N' has "
            "written"
        )
    outcomes, problems = _merged(folders)
    if outcomes:
        _runs.report(outcomes, as_json=as_json)
    if problems:
        raise IncompleteError("; ".join(problems))


def _merged(folders: list[Path]) -> tuple[list["Outcome"], list[str]]:
    """Returns the merged runs, and one sentence for each of the others."""
    from robustbench_kd.cli import _runs
    from robustbench_kd.engine.evaluate import Outcome
    from robustbench_kd.engine.record.merge import merge

    outcomes: list[Outcome] = []
    problems: list[str] = []
    for folder in folders:
        try:
            outcomes.append(Outcome(merge(folder), folder, stored=False))
            _runs.announce(outcomes[-1])
        except IncompleteError as error:
            problems.append(str(error))
    return outcomes, problems
