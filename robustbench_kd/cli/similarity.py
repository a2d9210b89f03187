"""Measure what a student has of its teacher: answers, invariances, attention, gradients."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustbench_kd.cli import _options, _similarity_tables
from robustbench_kd.cli._similarity_tables import ROLES
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Threat, parse_threats

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Subject, Target
    from robustbench_kd.similarity.bootstrap import Row, Series
    from robustbench_kd.similarity.compare import Comparison
    from robustbench_kd.tensors.contracts import Dataset


@dataclass(frozen=True, kw_only=True)
class SimilarityOptions(_options.DataOptions):
    """The options of `rkd similarity`."""

    teacher: str
    student: str
    baselines: tuple[str, ...]
    threat: str
    examples: str
    batch_size: int
    seed: int
    device: str
    results: Path
    out: Path
    trust_code: bool
    as_json: bool

    def targets(self) -> list["Target"]:
        """Describes the networks in the order of their roles."""
        texts = (self.teacher, self.student, *self.baselines)
        if len(texts) > len(ROLES):
            raise UsageError(
                f"expected at most two --baseline, got {len(self.baselines)}: the second is the "
                "null of the first"
            )
        return [_target(text, trust_code=self.trust_code) for text in texts]


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
@_options.examples
@_options.data
@_options.batch_size(250)
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
@_options.trust_code
@_options.as_json
@_options.typed(SimilarityOptions)
def command(options: SimilarityOptions) -> None:
    """Compares STUDENT with its TEACHER on the same images, beside an independent network.

    Both are cards or anything else that 'rkd eval' takes without further options. Measured are the
    teacher's answers on clean and on corrupted images, invariances to colours and crops, attacks
    that transfer both ways, attention (Grad-CAM) and input gradients; from runs under --results, if
    there are any, also the robustness retained, per parameter and per operation. Intervals are 95 %
    ones. A student has something of its teacher where it differs from an independent network by
    more than a second independent network does.

    \b
    Example:
      rkd similarity checkpoints/digits-teacher.toml checkpoints/digits-small.toml \
        --baseline checkpoints/digits-plain.toml
    """
    from robustbench_kd.cli import _console
    from robustbench_kd.core.files import write_text
    from robustbench_kd.core.rundir import run_folder, to_csv
    from robustbench_kd.similarity.bootstrap import Row

    comparison = _comparison(options)
    rows = _rows(comparison, options.results)
    names = [network.name for network in comparison.networks]
    folder = run_folder(options.out, f"{names[1]}-of-{names[0]}", "")
    write_text(folder / "similarity.csv", to_csv(rows, Row))
    write_text(folder / "similarity.md", _similarity_tables.markdown(rows, comparison))

    if options.as_json:
        _console.write_json([row.model_dump(mode="json") for row in rows])
    else:
        _similarity_tables.show(rows, comparison)
    _console.say(f"{folder / 'similarity.csv'} and similarity.md written", "dim")


def _comparison(options: SimilarityOptions) -> "Comparison":
    from robustbench_kd.cli import _devices
    from robustbench_kd.similarity.compare import Comparison

    targets = options.targets()
    teacher = targets[0]
    threat = _threat(teacher, options)
    limit = _options.parse_examples(options.examples)
    data = options.open_test(options.dataset_of(teacher), limit, _options.class_names(teacher))
    return Comparison(
        networks=tuple(_loaded(target, data) for target in targets),
        data=data,
        threat=threat,
        device=_devices.choose(options.device),
        seed=options.seed,
        batch_size=options.batch_size,
    )


def _target(text: str, *, trust_code: bool) -> "Target":
    from robustbench_kd.checkpoints.subject import Choices
    from robustbench_kd.checkpoints.target import describe

    described = describe(text, Choices(trust_code=trust_code))
    if len(described) > 1:
        raise UsageError(f"'{text}' holds {len(described)} checkpoints: name one of them")
    return described[0]


def _threat(teacher: "Target", options: SimilarityOptions) -> Threat:
    if options.threat:
        return Threat.parse(options.threat)
    if teacher.card is None or not teacher.card.threats:
        raise UsageError(
            f"which threat for '{teacher.name}'? Give --threat NORM:EPS, such as "
            "--threat linf:8/255"
        )
    return parse_threats(list(teacher.card.threats))[0]


def _loaded(target: "Target", data: "Dataset") -> "Subject":
    from robustbench_kd.checkpoints.target import load
    from robustbench_kd.cli import _console

    channels, height, width = data.images.shape[1:]
    subject = load(target, classes=data.classes, shape=(channels, height, width))
    for note in subject.notes:
        _console.say(f"{subject.name}: {note}", "dim")
    return subject


def _rows(comparison: "Comparison", results: Path) -> "list[Row]":
    """Returns all rows: measures of the networks, then those of stored runs."""
    from robustbench_kd.cli import _console
    from robustbench_kd.similarity.bootstrap import summarise
    from robustbench_kd.similarity.compare import INDEPENDENT, compare

    networks = comparison.networks
    names = [(network.name, role) for network, role in zip(networks, ROLES, strict=False)]
    label = f"{names[1][0]} of {names[0][0]}"
    with _console.progress() as line:
        measured = compare(comparison, lambda done, total: line.show(label, done, total, ""))

    summary = partial(summarise, names=names, reference=INDEPENDENT, seed=comparison.seed)
    rows = summary(measured)
    for protocol, series in _retained(comparison, results).items():
        rows += summary(series, protocol=protocol)
    return rows


def _retained(comparison: "Comparison", results: Path) -> "dict[str, list[Series]]":
    """Returns the robustness retained by protocol, from the runs of teacher and student."""
    from robustbench_kd.cli import _console
    from robustbench_kd.similarity import retained_robustness as retained
    from robustbench_kd.similarity.compare import flops

    networks = comparison.networks
    found = retained.protocols(results, networks)
    if not found:
        _console.say(
            f"no runs of both under '{results}': nothing is said of robustness retained", "dim"
        )
        return {}
    shape = comparison.data.images.shape[1:]
    parameters = [network.parameters for network in networks]
    operations = [flops(network, shape) for network in networks]
    return {protocol.name: retained.series(protocol, parameters, operations) for protocol in found}
