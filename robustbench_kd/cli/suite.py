"""Evaluate many checkpoints on many data sets, threats, suites and seeds."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robustbench_kd.cli import _options, _workers
from robustbench_kd.cli import eval as evaluation
from robustbench_kd.core.errors import IncompleteError, RkdError, UsageError, unknown_name
from robustbench_kd.core.text import duration
from robustbench_kd.core.threat import Threat, parse_curve

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Target
    from robustbench_kd.cli._sheet import Sheet
    from robustbench_kd.core.records import Identity, RunRecord
    from robustbench_kd.core.suites import Suite
    from robustbench_kd.engine.evaluate import Outcome
    from robustbench_kd.engine.forecast import Forecast
    from robustbench_kd.engine.run.request import Request

T = TypeVar("T")
Failures = dict[str, RkdError]
Known = tuple[str, str, str]  # model, engine, device


@dataclass(frozen=True)
class PlannedRun:
    """One `rkd eval`: a checkpoint under one threat, or one curve, with one suite and seed."""

    target: "Target"
    curve: list[Threat]
    suite: "Suite"
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Returns the name that `--only` finds, `digits-small/digits/linf:0.2/standard/0`."""
        radii = ",".join(threat.eps_text for threat in self.curve)
        options = self.options
        threat, seed = f"{self.curve[0].norm}:{radii}", str(options["seed"])
        return "/".join([self.target.name, options["dataset"], threat, options["suite"], seed])


@click.command("suite")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--plan",
    "planned",
    is_flag=True,
    help="Only say what is done, and what the rest costs at most; asks no model.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Only runs of this name, model or pattern such as '*/linf:*'; repeatable.",
)
@_options.results
@click.option("--trust-code", is_flag=True, help="Run the Python code that FILE or a card names.")
@_options.as_json
def command(file: Path, **options: Any) -> None:
    """Evaluates every checkpoint of FILE on every data set, under every threat, with every suite and seed.

    FILE is TOML. Every run is that of 'rkd eval': what is done is not done again, what was stopped is resumed. A run that
    fails does not stop the others; it is named at the end, and the exit code is 2, or 4 where it can be resumed. Paths
    are those of the folder in which the command runs.

    \b
    FILE:
      checkpoints = ["checkpoints/digits-*.toml"]   # anything that 'rkd eval' takes, or patterns
      datasets = ["digits"]                         # default: the card's
      threats = ["linf:0.1,0.2", "l2:0.5"]          # default: the card's
      suites = ["standard"]
      seeds = [0]
      [options]                                     # further options of 'rkd eval'
      examples = 100

    \b
    Examples:
      rkd suite experiments/digits.toml --plan
      rkd suite experiments/digits.toml --only digits-small
    """
    from robustbench_kd.cli import _console, _runs
    from robustbench_kd.cli._sheet import read_sheet

    sheet, params = read_sheet(file, trust_code=options["trust_code"])
    params |= {"results": options["results"]}
    failures: Failures = {}
    cells = _wanted(list(_cells(sheet, params, failures)), options["only"], failures)
    for name, error in failures.items():
        _console.say(f"{name}: {error}", "bold red")
    outcomes: list[Outcome] = []
    each = partial(_each, cells, evaluation.opener(params), failures)
    if options["planned"]:
        _show(
            list(each(partial(_forecasts, speeds=_speeds(options["results"])))),
            as_json=options["as_json"],
        )
    else:
        try:
            outcomes.extend(each(_outcomes))
        finally:
            if outcomes or options["as_json"]:
                _runs.report(outcomes, as_json=options["as_json"])
    _conclude(failures)
    _workers.raise_if_refuted(outcomes)


def _cells(sheet: "Sheet", params: dict[str, Any], failures: Failures) -> Iterator[PlannedRun]:
    """Yields all cells; a checkpoint that cannot be described goes to the failures."""
    curves = [parse_curve(text) for text in sheet.threats]
    for target in _targets(sheet, params, failures):
        try:
            own = curves or evaluation.card_curves(target)
        except UsageError as error:
            failures[target.name] = error
            continue
        usual = target.card.dataset if target.card else "digits"
        for dataset, curve, suite, seed in product(sheet.datasets, own, sheet.suites, sheet.seeds):
            options = params | {"dataset": dataset or usual, "suite": suite, "seed": seed}
            yield PlannedRun(target, curve, evaluation.chosen_suite(options), options)


def _targets(sheet: "Sheet", params: dict[str, Any], failures: Failures) -> Iterator["Target"]:
    from robustbench_kd.checkpoints.target import describe

    choices = _options.choices(params)
    for text in dict.fromkeys(sheet.checkpoints):
        try:
            yield from describe(text, choices)
        except RkdError as error:
            failures[text] = error


def _wanted(
    cells: list[PlannedRun], patterns: Sequence[str], failures: Failures
) -> list[PlannedRun]:
    """Returns the cells that are asked for; then only failures that are asked for count, too."""
    if not patterns:
        return cells

    def asked(name: str, pattern: str) -> bool:
        return fnmatch(name, pattern) or name.startswith(f"{pattern}/")

    names = [*(cell.name for cell in cells), *failures]
    for pattern in patterns:
        if not any(asked(name, pattern) for name in names):
            raise unknown_name("run", pattern, names)
    for name in [
        name for name in failures if not any(asked(name, pattern) for pattern in patterns)
    ]:
        del failures[name]
    return [cell for cell in cells if any(asked(cell.name, pattern) for pattern in patterns)]


def _each(
    cells: Iterable[PlannedRun],
    opened: evaluation.Opened,
    failures: Failures,
    work: Callable[[PlannedRun, "Request"], Iterable[T]],
) -> Iterator[T]:
    """Yields what the work on each cell gives; one that fails goes to the failures."""
    from robustbench_kd.cli import _console

    for cell in cells:
        try:
            yield from work(
                cell,
                evaluation.request(cell.target, cell.curve[0], cell.suite, cell.options, opened),
            )
        except RkdError as error:
            failures[cell.name] = error
            _console.say(f"{cell.name}: {error}", "bold red")


def _outcomes(cell: PlannedRun, request: "Request") -> Iterator["Outcome"]:
    spread = evaluation.spread_of(cell.target, cell.curve[0], cell.suite, cell.options)
    return evaluation.outcomes_of(request, cell.curve, cell.options, spread)


def _forecasts(
    cell: PlannedRun, request: "Request", speeds: Mapping[Known, float]
) -> Iterator[tuple[PlannedRun, "Forecast", float | None]]:
    """Yields what each radius costs at most, with seconds where the model was evaluated before."""
    from robustbench_kd.engine.forecast import forecast

    smaller: Path | None = None
    for threat in cell.curve:
        found = forecast(replace(request, threat=threat, smaller=smaller), cell.options["results"])
        smaller = None if found.randomized else found.folder
        speed = speeds.get(_known(found.identity))
        yield cell, found, None if speed is None else found.passes * speed


def _speeds(results: Path) -> dict[Known, float]:
    """Returns the seconds of a pass in earlier runs."""
    from robustbench_kd.analysis.leaderboard import read_records

    if not results.is_dir():
        return {}
    groups: dict[Known, list[RunRecord]] = {}
    for record in read_records(results)[0].values():
        groups.setdefault(_known(record.identity), []).append(record)
    passes = {
        known: sum(one.forwards + one.backwards for one in group) for known, group in groups.items()
    }
    return {
        known: sum(one.seconds for one in groups[known]) / count
        for known, count in passes.items()
        if count
    }


def _known(identity: "Identity") -> Known:
    return identity.model, identity.engine, identity.device


def _show(rows: Sequence[tuple[PlannedRun, "Forecast", float | None]], *, as_json: bool) -> None:
    from robustbench_kd.cli import _console

    if as_json:
        _console.write_json([_row_json(*row) for row in rows])
        return
    sides = {
        "run": "left",
        "threat": "left",
        "state": "left",
        "passes at most": "right",
        "time at most": "right",
    }
    table = _console.table("", sides)
    for cell, found, seconds in rows:
        costs = [f"{found.passes:,}", "" if seconds is None else duration(seconds)]
        cells = [
            cell.name,
            _threat(found),
            found.state,
            *(["", ""] if found.state == "done" else costs),
        ]
        table.add_row(*map(_console.plain, cells))
    _console.show_table(table)


def _threat(found: "Forecast") -> str:
    return f"{found.identity.norm}:{found.identity.eps_text}"


def _row_json(cell: PlannedRun, found: "Forecast", seconds: float | None) -> dict[str, Any]:
    run = {
        "name": cell.name,
        "threat": _threat(found),
        "run": found.folder.name,
        "folder": str(found.folder),
    }
    return run | {"state": found.state, "passes": found.passes, "seconds": seconds}


def _conclude(failures: Failures) -> None:
    """Raises an error that names all failures: an incomplete one where nothing but time is missing."""
    if not failures:
        return
    kind = (
        IncompleteError
        if all(isinstance(error, IncompleteError) for error in failures.values())
        else UsageError
    )
    raise kind(f"{len(failures)} failed: {'; '.join(failures)}")
