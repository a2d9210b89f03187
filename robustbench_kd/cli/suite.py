"""Evaluate many checkpoints on many data sets, threats, suites and seeds."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypedDict, TypeVar

import click

from robustbench_kd.cli import _failures, _options, _requests, _workers
from robustbench_kd.cli._eval_options import Curve, EvalOptions, OpenData, card_curves
from robustbench_kd.cli._failures import Failures
from robustbench_kd.core.errors import RkdError, UsageError, unknown_name
from robustbench_kd.core.text import duration
from robustbench_kd.core.threat import parse_curve

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Target
    from robustbench_kd.cli._sheet import Sheet
    from robustbench_kd.core.records import Identity
    from robustbench_kd.core.suites import Suite
    from robustbench_kd.engine.evaluate import Outcome
    from robustbench_kd.engine.forecast import Forecast
    from robustbench_kd.engine.run.request import Request

T = TypeVar("T")
Kind: TypeAlias = tuple[str, str, str]  # model, engine, device


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """The options of `rkd suite`."""

    file: Path
    planned: bool
    only: tuple[str, ...]
    results: Path
    trust_code: bool
    as_json: bool


@dataclass(frozen=True)
class PlannedRun:
    """One `rkd eval`: a checkpoint under one threat, or one curve, with one suite and seed."""

    target: "Target"
    curve: Curve
    suite: "Suite"
    options: EvalOptions

    @property
    def name(self) -> str:
        """Returns the name that `--only` finds, `digits-small/digits/linf:0.2/standard/0`."""
        radii = ",".join(threat.eps_text for threat in self.curve)
        threat = f"{self.curve[0].norm}:{radii}"
        options = self.options
        return "/".join(
            [self.target.name, options.dataset, threat, options.suite, str(options.seed)]
        )


class _Cost(NamedTuple):
    """What a run costs at most; seconds are known where the model was evaluated before."""

    run: PlannedRun
    forecast: "Forecast"
    seconds: float | None


class _Row(TypedDict):
    """A line of `rkd suite --plan --json`."""

    name: str
    threat: str
    run: str
    folder: str
    state: str
    passes: int
    seconds: float | None


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
@_options.typed(SuiteOptions)
def command(options: SuiteOptions) -> None:
    """Evaluates every checkpoint of FILE on every data set, by every threat, suite and seed.

    FILE is TOML. Every run is that of 'rkd eval': finished runs are not repeated, stopped ones are
    resumed. A run that fails does not stop the others; it is named at the end, and the exit code is
    2, or 4 where it can be resumed. Paths are those of the folder in which the command runs.

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
    """  # fmt: skip  # click wraps it
    from robustbench_kd.cli import _console, _runs
    from robustbench_kd.cli._sheet import read_sheet

    sheet, shared = read_sheet(options.file, trust_code=options.trust_code)
    shared = replace(shared, results=options.results)
    failures: Failures = {}
    runs = _wanted(list(_planned_runs(sheet, shared, failures)), options.only, failures)
    for name, error in failures.items():
        _console.say(f"{name}: {error}", "bold red")

    outcomes: list[Outcome] = []
    each = partial(_each, runs, shared.open_data(), failures)
    if options.planned:
        costs = list(each(partial(_costs, speeds=_speeds(options.results))))
        _show(costs, as_json=options.as_json)
    else:
        try:
            outcomes.extend(each(_outcomes))
        finally:
            if outcomes or options.as_json:
                _runs.report(outcomes, as_json=options.as_json)
    _failures.conclude(failures)
    _workers.raise_if_refuted(outcomes)


def _planned_runs(sheet: "Sheet", shared: EvalOptions, failures: Failures) -> Iterator[PlannedRun]:
    """Yields all runs; a checkpoint that cannot be described is added to the failures."""
    curves = [parse_curve(text) for text in sheet.threats]
    for target in _targets(sheet, shared, failures):
        try:
            own = curves or card_curves(target)
            usual = shared.dataset_of(target) if "" in sheet.datasets else ""
        except UsageError as error:
            failures[target.name] = error
            continue
        for dataset, curve, suite, seed in product(sheet.datasets, own, sheet.suites, sheet.seeds):
            options = replace(shared, dataset=dataset or usual, suite=suite, seed=seed)
            yield PlannedRun(target, curve, options.chosen_suite(), options)


def _targets(sheet: "Sheet", shared: EvalOptions, failures: Failures) -> Iterator["Target"]:
    from robustbench_kd.checkpoints.listing import expanded
    from robustbench_kd.checkpoints.target import describe

    choices = shared.choices()
    texts = [text for target in sheet.checkpoints for text in expanded(target)]
    for text in dict.fromkeys(texts):
        try:
            yield from describe(text, choices)
        except RkdError as error:
            failures[text] = error


def _wanted(
    runs: list[PlannedRun], patterns: Sequence[str], failures: Failures
) -> list[PlannedRun]:
    """Returns the runs that are asked for, and removes other failures."""
    if not patterns:
        return runs

    names = [*(run.name for run in runs), *failures]
    for pattern in patterns:
        if not any(_matches(name, [pattern]) for name in names):
            raise unknown_name("run", pattern, names)
    for name in list(failures):
        if not _matches(name, patterns):
            del failures[name]
    return [run for run in runs if _matches(run.name, patterns)]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) or name.startswith(f"{pattern}/") for pattern in patterns)


def _each(
    runs: Iterable[PlannedRun],
    open_data: OpenData,
    failures: Failures,
    work: Callable[[PlannedRun, "Request"], Iterable[T]],
) -> Iterator[T]:
    """Yields what the work on each run gives; one that fails is added to the failures."""
    for run in runs:
        with _failures.going_on(failures, run.name):
            request = _requests.make_request(
                run.target, run.curve[0], run.suite, run.options, open_data
            )
            yield from work(run, request)


def _outcomes(run: PlannedRun, request: "Request") -> Iterator["Outcome"]:
    spread = _requests.spread_of(run.target, run.curve[0], run.suite, run.options)
    return _requests.outcomes_of(request, run.curve, run.options, spread)


def _costs(run: PlannedRun, request: "Request", speeds: Mapping[Kind, float]) -> Iterator[_Cost]:
    """Yields what each radius costs at most."""
    from robustbench_kd.engine.forecast import forecast

    smaller: Path | None = None
    for threat in run.curve:
        asked = replace(request, threat=threat, smaller=smaller)
        found = forecast(asked, run.options.results)
        smaller = None if found.randomized else found.folder
        speed = speeds.get(_kind(found.identity))
        yield _Cost(run, found, None if speed is None else found.passes * speed)


def _speeds(results: Path) -> dict[Kind, float]:
    """Returns the seconds of a pass in earlier runs."""
    from robustbench_kd.analysis.leaderboard import read_records

    if not results.is_dir():
        return {}
    passes: dict[Kind, int] = {}
    seconds: dict[Kind, float] = {}
    for record in read_records(results)[0].values():
        kind = _kind(record.identity)
        passes[kind] = passes.get(kind, 0) + record.forwards + record.backwards
        seconds[kind] = seconds.get(kind, 0.0) + record.seconds
    return {kind: seconds[kind] / count for kind, count in passes.items() if count}


def _kind(identity: "Identity") -> Kind:
    return identity.model, identity.engine, identity.device


def _show(costs: Sequence[_Cost], *, as_json: bool) -> None:
    from robustbench_kd.cli import _console

    if as_json:
        _console.write_json([_row(cost) for cost in costs])
        return
    sides = {
        "run": "left",
        "threat": "left",
        "state": "left",
        "passes at most": "right",
        "time at most": "right",
    }
    table = _console.table("", sides)
    for cost in costs:
        table.add_row(*map(_console.plain, _cells(cost)))
    _console.show_table(table)


def _cells(cost: _Cost) -> list[str]:
    found = cost.forecast
    cells = [cost.run.name, _threat(found), found.state]
    if found.state == "done":
        return [*cells, "", ""]
    time = "" if cost.seconds is None else duration(cost.seconds)
    return [*cells, f"{found.passes:,}", time]


def _threat(found: "Forecast") -> str:
    return f"{found.identity.norm}:{found.identity.eps_text}"


def _row(cost: _Cost) -> _Row:
    found = cost.forecast
    return {
        "name": cost.run.name,
        "threat": _threat(found),
        "run": found.folder.name,
        "folder": str(found.folder),
        "state": found.state,
        "passes": found.passes,
        "seconds": cost.seconds,
    }
