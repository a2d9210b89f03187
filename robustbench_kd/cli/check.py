"""Look at a checkpoint before any attack, in seconds."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import DatasetError
from robustbench_kd.core.text import duration
from robustbench_kd.core.threat import Threat

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Subject, Target
    from robustbench_kd.engine.inspect import Inspection
    from robustbench_kd.tensors.contracts import Dataset

_USUAL_THREAT = "linf:8/255"
_EXAMPLES = 500


@click.command("check")
@click.argument("target", metavar="TARGET")
@click.option(
    "--threat",
    default="",
    metavar="NORM:EPS",
    help=f"Scale of the probes: linf:8/255, l2:0.5, ... (default: the card's first, or {_USUAL_THREAT}).",
)
@click.option(
    "--examples",
    default="",
    help=f"First N of the test split in official order, or all (default: {_EXAMPLES}, or all of fewer).",
)
@_options.data
@_options.loading
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=250,
    show_default=True,
    help="Images per batch.",
)
@_options.seed
@_options.device
@click.option("--trust-code", is_flag=True, help="Run the Python code that a card names.")
@_options.as_json
def command(target: str, **options: Any) -> None:
    """Loads a checkpoint safely and says what could spoil an evaluation of it.

    It tells the classes and the shape and range of the images, the clean accuracy under its own and the usual input
    normalisations, whether it answers with logits, depends on chance or on the rest of the batch, and whether gradients
    are there, agree with finite differences and hold up over a distance. No attack is run. What suites would cost is an
    estimate from passes of the model alone: what an image costs that no attack breaks.

    A TARGET is one of 'rkd eval'. Exits with 2 where it cannot be loaded or gives no logits, with 0 whatever is found.

    \b
    Examples:
      rkd check checkpoints/digits-teacher.toml
      rkd check net.pth --arch resnet18 --dataset cifar10 --normalisation cifar10
    """  # fmt: skip
    from robustbench_kd.checkpoints.target import describe, load
    from robustbench_kd.cli import _console, _devices
    from robustbench_kd.engine.inspect import inspect

    found = []
    for described in describe(target, _options.choices(options)):
        data = _data(
            options["dataset"] or (described.card.dataset if described.card else "digits"), options
        )
        channels, height, width = data.images.shape[1:]
        subject = load(described, classes=data.classes, shape=(channels, height, width))
        threat = _threat(options["threat"], described)
        device = _devices.choose(options["device"])
        seen = inspect(
            subject,
            data,
            threat,
            device=device,
            seed=options["seed"],
            batch_size=options["batch_size"],
        )
        found.append(_facts(subject, data, threat, seen))
        if not options["as_json"]:
            _show(found[-1], seen)
    if options["as_json"]:
        _console.write_json(found)


def _data(name: str, options: dict[str, Any]) -> "Dataset":
    if options["examples"]:
        return _options.open_test(name, _options.parse_examples(options["examples"]), options)
    try:
        return _options.open_test(name, _EXAMPLES, options)
    except DatasetError:  # it may hold fewer; whatever else is wrong shows again
        return _options.open_test(name, None, options)


def _threat(text: str, target: "Target") -> Threat:
    if text:
        return Threat.parse(text)
    return Threat.parse(
        target.card.threats[0] if target.card and target.card.threats else _USUAL_THREAT
    )


def _facts(
    subject: "Subject", data: "Dataset", threat: Threat, seen: "Inspection"
) -> dict[str, Any]:
    from robustbench_kd.core.records import verdict

    return {
        "model": subject.name,
        "family": subject.family,
        "architecture": subject.architecture,
        "parameters": subject.parameters,
        "checkpoint_sha256": subject.checkpoint_sha256,
        "notes": list(subject.notes),
        "dataset": data.name,
        "image_shape": list(data.images.shape[1:]),
        "pixels": list(seen.pixels),
        "threat": str(threat),
        "classes": seen.classes,
        "outputs": seen.outputs,
        "clean": seen.clean.model_dump(mode="json"),
        "normalisation": seen.normalisation,
        "normalisations": seen.normalisations,
        "findings": [finding.model_dump(mode="json") for finding in seen.findings],
        "verdict": verdict(seen.findings),
        "speed": asdict(seen.speed),
        "suites": [asdict(cost) for cost in seen.costs],
    }


def _show(facts: dict[str, Any], seen: "Inspection") -> None:
    from robustbench_kd.cli import _console

    table = _console.table(facts["model"], {"": "left", "found": "left"})
    for name, text in _lines(facts, seen):
        table.add_row(name, _console.plain(text))
    _console.show_table(table)
    _show_findings(seen)
    _show_costs(seen)


def _lines(facts: dict[str, Any], seen: "Inspection") -> Iterator[tuple[str, str]]:
    from robustbench_kd.cli import _console

    yield (
        "network",
        f"{facts['family']}, {facts['architecture']}, {facts['parameters']:,} parameters",
    )
    for note in facts["notes"]:
        yield "loading", note
    low, high = seen.pixels
    yield (
        "images",
        f"{facts['dataset']}, {seen.clean.n} of shape {tuple(facts['image_shape'])}, from {low:g} to {high:g}",
    )
    yield "outputs", f"{seen.outputs} of {seen.classes} classes"
    yield "clean %", f"{_console.percent(seen.clean)} with normalisation {seen.normalisation}"
    if seen.normalisations:
        yield (
            "normalisations",
            ", ".join(f"{name} {share:.1%}" for name, share in seen.normalisations.items()),
        )
    yield "probed at", facts["threat"]


def _show_findings(seen: "Inspection") -> None:
    from robustbench_kd.cli import _console

    if not seen.findings:
        _console.write("No findings.\n")
        return
    table = _console.table(
        "", {"severity": "left", "finding": "left", "what was seen": "left", "what to do": "left"}
    )
    for finding in seen.findings:
        cells = finding.severity, finding.check, finding.message, finding.advice
        table.add_row(*map(_console.plain, cells), style=_console.SEVERITY_STYLES[finding.severity])
    _console.show_table(table)


def _show_costs(seen: "Inspection") -> None:
    from robustbench_kd.cli import _console

    columns = {"suite": "left", "passes": "right", "time of 1,000 images": "right"}
    table = _console.table("", columns)
    for cost in seen.costs:
        table.add_row(cost.suite, f"{cost.passes:,}", duration(1000 * cost.seconds))
    _console.show_table(table)
    speed = seen.speed
    memory = (
        ""
        if speed.megabytes is None
        else f" Gradients keep {speed.megabytes:.2g} MB per image of a batch."
    )
    _console.say(
        f"Passes and time are for images that no attack breaks; others cost less. Time is the model's alone, from passes of "
        f"{speed.batch} images that differed by {speed.spread:.0%}.{memory}",
        "dim",
    )
