"""Measure what a student has of its teacher: answers, weaknesses, invariances, attention, gradients."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Threat, parse_threats

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Subject, Target
    from robustbench_kd.similarity.bootstrap import Row
    from robustbench_kd.similarity.compare import Comparison
    from robustbench_kd.tensors.contracts import Dataset

_ROLES = ("teacher", "student", "independent", "null")
_HEADINGS = ("measure", *_ROLES, "student - independent", "null - independent")


@click.command("similarity")
@click.argument("teacher")
@click.argument("student")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    metavar="INDEPENDENT",
    help="A network trained like the student but without a teacher; a second one gives the null.",
)
@click.option(
    "--threat",
    default="",
    metavar="NORM:EPS",
    help="Bounds the transferred attacks (default: the teacher's card).",
)
@click.option(
    "--examples",
    default="all",
    show_default=True,
    help="First N of the test split in official order, or all.",
)
@_options.data
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=250,
    show_default=True,
    help="Images per batch.",
)
@_options.seed
@_options.device
@_options.results
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("similarity"),
    show_default=True,
    help="Folder for the tables: OUT/STUDENT-of-TEACHER/similarity.csv and .md.",
)
@click.option("--trust-code", is_flag=True, help="Run the Python code that a card names.")
@_options.as_json
def command(teacher: str, student: str, **options: Any) -> None:
    """Compares STUDENT with its TEACHER on the same images, beside what an independent network has in common with it.

    Both are cards or anything else that 'rkd eval' takes without further options. Measured are the teacher's answers on
    clean and on corrupted images, invariances to colours and crops, attacks that transfer both ways, attention (Grad-CAM)
    and input gradients; from runs under --results, if there are any, also the robustness retained, per parameter and per
    operation. Intervals are 95 % ones. A student has something of its teacher where it differs from an independent network
    by more than a second independent one does.

    \b
    Example:
      rkd similarity checkpoints/digits-teacher.toml checkpoints/digits-small.toml --baseline checkpoints/digits-plain.toml
    """  # fmt: skip
    from robustbench_kd.cli import _console, _devices
    from robustbench_kd.core.rundir import run_folder, to_csv, write_text
    from robustbench_kd.similarity.bootstrap import Row
    from robustbench_kd.similarity.compare import Comparison

    targets = [_one(text, options) for text in (teacher, student, *options["baselines"])]
    if len(targets) > len(_ROLES):
        raise UsageError(
            f"expected at most two --baseline, got {len(targets) - 2}: the second is the null of the first"
        )
    threat, data = _threat(targets[0], options), _dataset(targets[0], options)
    asked = Comparison(
        networks=tuple(_loaded(target, data) for target in targets),
        data=data,
        threat=threat,
        device=_devices.choose(options["device"]),
        seed=options["seed"],
        batch_size=options["batch_size"],
    )
    rows = _rows(asked, options["results"])
    names = [network.name for network in asked.networks]
    folder = run_folder(options["out"], f"{names[1]}-of-{names[0]}", "")
    write_text(folder / "similarity.csv", to_csv(rows, Row))
    write_text(folder / "similarity.md", _markdown(rows, asked))
    if options["as_json"]:
        _console.write_json([row.model_dump(mode="json") for row in rows])
    else:
        _show(rows, asked)
    _console.say(f"{folder / 'similarity.csv'} and similarity.md written", "dim")


def _one(text: str, options: dict[str, Any]) -> "Target":
    from robustbench_kd.checkpoints.subject import Choices
    from robustbench_kd.checkpoints.target import describe

    described = describe(text, Choices(trust_code=options["trust_code"]))
    if len(described) > 1:
        raise UsageError(f"'{text}' holds {len(described)} checkpoints: name one of them")
    return described[0]


def _threat(teacher: "Target", options: dict[str, Any]) -> Threat:
    if options["threat"]:
        return Threat.parse(options["threat"])
    if teacher.card is None or not teacher.card.threats:
        raise UsageError(
            f"which threat for '{teacher.name}'? Give --threat NORM:EPS, such as --threat linf:8/255"
        )
    return parse_threats(list(teacher.card.threats))[0]


def _dataset(teacher: "Target", options: dict[str, Any]) -> "Dataset":
    named = options["dataset"] or (teacher.card.dataset if teacher.card else "digits")
    return _options.open_test(named, _options.parse_examples(options["examples"]), options)


def _loaded(target: "Target", data: "Dataset") -> "Subject":
    from robustbench_kd.checkpoints.target import load
    from robustbench_kd.cli import _console

    channels, height, width = data.images.shape[1:]
    subject = load(target, classes=data.classes, shape=(channels, height, width))
    for note in subject.notes:
        _console.say(f"{subject.name}: {note}", "dim")
    return subject


def _rows(asked: "Comparison", results: Path) -> "list[Row]":
    """Returns all rows: what is measured on the networks, then what stored runs say of them."""
    from robustbench_kd.cli import _console
    from robustbench_kd.similarity import retained_robustness as retained
    from robustbench_kd.similarity.bootstrap import summarise
    from robustbench_kd.similarity.compare import INDEPENDENT, compare, flops

    names = [(network.name, role) for network, role in zip(asked.networks, _ROLES, strict=False)]
    with _console.progress() as line:
        measured = compare(
            asked, lambda done, whole: line.show(f"{names[1][0]} of {names[0][0]}", done, whole, "")
        )
    rows = summarise(measured, names, reference=INDEPENDENT, seed=asked.seed)
    found = retained.protocols(results, asked.networks)
    if not found:
        _console.say(
            f"no runs of both under '{results}': nothing is said of robustness retained", "dim"
        )
    parameters = [network.parameters for network in asked.networks]
    operations = (
        [flops(network, asked.data.images.shape[1:]) for network in asked.networks] if found else []
    )
    for protocol in found:
        series = retained.series(protocol, parameters, operations)
        rows += summarise(
            series, names, reference=INDEPENDENT, seed=asked.seed, protocol=protocol.name
        )
    return rows


def _lines(rows: "Sequence[Row]") -> Iterator[tuple[str, ...]]:
    """Yields the cells of each measure: every network's value, then the differences from the independent one."""
    measures = dict.fromkeys(row.measure for row in rows)
    known = {(row.measure, row.role): row for row in rows}
    for measure in measures:
        found = [known.get((measure, role)) for role in _ROLES]
        yield (measure, *map(_value, found), _difference(found[1]), _difference(found[3]))


def _value(row: "Row | None") -> str:
    if row is None or row.value is None or row.ci_low is None or row.ci_high is None:
        return ""
    if row.share:
        return f"{100 * row.value:.1f} [{100 * row.ci_low:.1f}, {100 * row.ci_high:.1f}]"
    return f"{_short(row.value)} [{_short(row.ci_low)}, {_short(row.ci_high)}]"


def _difference(row: "Row | None") -> str:
    if (
        row is None
        or row.difference is None
        or row.difference_low is None
        or row.difference_high is None
    ):
        return ""
    numbers = (row.difference, row.difference_low, row.difference_high)
    shown = [f"{100 * number:+.1f}" if row.share else _short(number, "+") for number in numbers]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _short(number: float, sign: str = "") -> str:
    """Returns a number with three digits, or without a fraction where it has more before the point."""
    return format(number, f"{sign},.0f" if abs(number) >= 1000 else f"{sign}.3g")


def _tables(
    rows: "Sequence[Row]", asked: "Comparison"
) -> Iterator[tuple[str, list[str], list[tuple[str, ...]]]]:
    """Yields the title, headings and lines of each table, without the columns that are empty throughout."""
    for protocol, group in groupby(rows, lambda row: row.protocol):
        lines = list(_lines(list(group)))
        used = [column for column in range(len(_HEADINGS)) if any(line[column] for line in lines)]
        headings = [_HEADINGS[column] for column in used]
        yield (
            protocol or _title(asked),
            headings,
            [tuple(line[column] for column in used) for line in lines],
        )


def _show(rows: "Sequence[Row]", asked: "Comparison") -> None:
    from robustbench_kd.cli import _console

    for title, headings, lines in _tables(rows, asked):
        sides = {heading: "left" if heading == "measure" else "right" for heading in headings}
        shown = _console.table(title, sides)
        shown.padding = (0, 1)  # up to seven columns have to fit a terminal
        for line in lines:
            shown.add_row(*map(_console.plain, line))
        _console.show_table(shown)


def _markdown(rows: "Sequence[Row]", asked: "Comparison") -> str:
    from robustbench_kd.analysis.markdown import code

    networks = ", ".join(
        f"{role} {code(network.name)}"
        for role, network in zip(_ROLES, asked.networks, strict=False)
    )
    parts = ["# Similarity", f"Networks: {networks}."]
    for title, headings, lines in _tables(rows, asked):
        rule = [":--", *["--:"] * (len(headings) - 1)]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *lines))
        parts += [f"## {code(title)}", table]
    notes = (
        "Shares in percent with 95 % Wilson intervals, other numbers and all differences with bootstrapped ones over "
        "examples; differences are paired. Attention and gradients are compared with the teacher's. Robust accuracies per "
        "million parameters or GFLOP are fractions divided by size."
    )
    return "\n\n".join([*parts, notes]) + "\n"


def _title(asked: "Comparison") -> str:
    return f"{asked.data.name}, {len(asked.data)} examples, transferred attacks {asked.threat}, seed {asked.seed}"
