"""Look at a checkpoint before any attack, in seconds."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import click

from robustbench_kd.cli import _failures, _options
from robustbench_kd.cli._failures import Failures
from robustbench_kd.core.errors import DatasetError
from robustbench_kd.core.text import duration
from robustbench_kd.core.threat import Threat

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Subject, Target
    from robustbench_kd.engine.inspect import Inspection
    from robustbench_kd.tensors.contracts import Dataset

_USUAL_THREAT = "linf:8/255"
_EXAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class CheckOptions(_options.DataOptions, _options.LoadingOptions):
    """The options of `rkd check`."""

    target: str
    threat: str
    examples: str
    batch_size: int
    seed: int
    device: str
    as_json: bool

    def open_data(self, target: "Target") -> "Dataset":
        """Opens the test split of a data set, by default 500 examples or all of fewer."""
        name = self.dataset_of(target)
        names = _options.class_names(target)
        if self.examples:
            return self.open_test(name, _options.parse_examples(self.examples), names)
        try:
            return self.open_test(name, _EXAMPLES, names)
        except DatasetError:  # it may hold fewer; any other error shows again
            return self.open_test(name, None, names)


class _Checked(NamedTuple):
    """A checkpoint with what was found out about it."""

    subject: "Subject"
    data: "Dataset"
    threat: Threat
    inspection: "Inspection"


@click.command("check")
@click.argument("target", metavar="TARGET")
@click.option(
    "--threat",
    default="",
    metavar="NORM:EPS",
    help="Scale of the probes: linf:8/255, l2:0.5, ... "
    f"(default: the card's first, or {_USUAL_THREAT}).",
)
@click.option(
    "--examples",
    default="",
    help="First N of the test split in official order, or all "
    f"(default: {_EXAMPLES}, or all of fewer).",
)
@_options.data
@_options.loading
@_options.batch_size(250)
@_options.seed
@_options.device
@_options.trust_code
@_options.as_json
@_options.typed(CheckOptions)
def command(options: CheckOptions) -> None:
    """Loads a checkpoint safely and says what could spoil an evaluation of it.

    It shows the classes and the shape and range of the images, the clean accuracy under its own and
    the usual input normalisations, whether it answers with logits, is randomized or depends on the
    rest of the batch, and whether gradients exist, agree with finite differences and keep their
    direction over a distance. Where other gradients than the model's own do better in a short
    attack on a few images, a tree shows what masks them. The cost of suites is an estimate from
    passes of the model alone, for an image that no attack breaks.

    A TARGET is one of 'rkd eval'. Exits with 2 where it cannot be loaded or gives no logits, with 0
    whatever is found.

    \b
    Examples:
      rkd check checkpoints/digits-teacher.toml
      rkd check net.pth --arch resnet18 --dataset cifar10 --normalisation cifar10
    """
    from robustbench_kd.checkpoints.listing import expanded
    from robustbench_kd.cli import _console

    facts = []
    failures: Failures = {}
    texts = expanded(options.target)
    for text in texts:
        with _failures.going_on(failures, text, alone=len(texts) == 1):
            checked = _checked(text, options)
            facts.append(_facts(checked))
            if not options.as_json:
                _show(checked)
    if options.as_json:
        _console.write_json(facts)
    _failures.conclude(failures)


def _checked(text: str, options: CheckOptions) -> _Checked:
    from robustbench_kd.checkpoints.target import describe, load
    from robustbench_kd.cli import _devices
    from robustbench_kd.engine.inspect import inspect

    (target,) = describe(text, options.choices())
    data = options.open_data(target)
    channels, height, width = data.images.shape[1:]
    subject = load(target, classes=data.classes, shape=(channels, height, width))
    threat = _threat(options.threat, target)
    inspection = inspect(
        subject,
        data,
        threat,
        device=_devices.choose(options.device),
        seed=options.seed,
        batch_size=options.batch_size,
    )
    return _Checked(subject, data, threat, inspection)


def _threat(text: str, target: "Target") -> Threat:
    if text:
        return Threat.parse(text)
    if target.card and target.card.threats:
        return Threat.parse(target.card.threats[0])
    return Threat.parse(_USUAL_THREAT)


def _facts(checked: _Checked) -> dict[str, object]:
    """Returns what was found, as JSON."""
    from robustbench_kd.cli import _anatomy
    from robustbench_kd.core.verdicts import verdict

    subject = checked.subject
    inspection = checked.inspection
    return {
        "model": subject.name,
        "family": subject.family,
        "architecture": subject.architecture,
        "parameters": subject.parameters,
        "checkpoint_sha256": subject.checkpoint_sha256,
        "notes": list(subject.notes),
        "dataset": checked.data.name,
        "image_shape": list(checked.data.images.shape[1:]),
        "pixels": list(inspection.pixels),
        "threat": str(checked.threat),
        "classes": inspection.classes,
        "outputs": inspection.outputs,
        "clean": inspection.clean.model_dump(mode="json"),
        "normalisation": inspection.normalisation,
        "normalisations": inspection.normalisations,
        "findings": [finding.model_dump(mode="json") for finding in inspection.findings],
        "verdict": verdict(inspection.findings),
        "anatomy": _anatomy.facts(inspection.anatomy),
        "speed": asdict(inspection.speed),
        "suites": [asdict(cost) for cost in inspection.costs],
    }


def _show(checked: _Checked) -> None:
    from robustbench_kd.cli import _anatomy, _console

    table = _console.table(checked.subject.name, {"": "left", "found": "left"})
    for name, text in _lines(checked):
        table.add_row(name, _console.plain(text))
    _console.show_table(table)
    _show_findings(checked.inspection)
    _anatomy.show(checked.inspection.anatomy)
    _show_costs(checked.inspection)


def _lines(checked: _Checked) -> Iterator[tuple[str, str]]:
    from robustbench_kd.cli import _console

    subject, data, threat, found = checked
    network = f"{subject.family}, {subject.architecture}, {subject.parameters:,} parameters"
    yield "network", network
    for note in subject.notes:
        yield "loading", note

    shape = tuple(data.images.shape[1:])
    low, high = found.pixels
    yield "images", f"{data.name}, {found.clean.n} of shape {shape}, from {low:g} to {high:g}"
    yield "outputs", f"{found.outputs} of {found.classes} classes"
    accuracy = _console.accuracy_text(found.clean)
    yield "clean %", f"{accuracy} with normalisation {found.normalisation}"
    if found.normalisations:
        accuracies = [f"{name} {value:.1%}" for name, value in found.normalisations.items()]
        yield "normalisations", ", ".join(accuracies)
    yield "probed at", str(threat)


def _show_findings(inspection: "Inspection") -> None:
    from robustbench_kd.cli import _console

    if not inspection.findings:
        _console.write("No findings.\n")
        return
    headings = ("severity", "finding", "what was seen", "what to do")
    table = _console.table("", dict.fromkeys(headings, "left"))
    for finding in inspection.findings:
        cells = (finding.severity, finding.check, finding.message, finding.advice)
        style = _console.SEVERITY_STYLES[finding.severity]
        table.add_row(*map(_console.plain, cells), style=style)
    _console.show_table(table)


def _show_costs(inspection: "Inspection") -> None:
    from robustbench_kd.cli import _console

    columns = {"suite": "left", "passes": "right", "time of 1,000 images": "right"}
    table = _console.table("", columns)
    for cost in inspection.costs:
        table.add_row(cost.suite, f"{cost.passes:,}", duration(1000 * cost.seconds))
    _console.show_table(table)

    speed = inspection.speed
    memory = ""
    if speed.megabytes is not None:
        memory = f" Gradients keep {speed.megabytes:.2g} MB per image of a batch."
    _console.say(
        "Passes and time are for images that no attack breaks; others cost less. Time is the "
        f"model's alone, from passes of {speed.batch} images that differed by {speed.spread:.0%}."
        f"{memory}",
        "dim",
    )
