"""Convert a weights file to safetensors with a card beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import UsageError

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Target


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(_options.DataOptions, _options.LoadingOptions):
    """The options of `rkd convert`."""

    old: str
    new: Path
    threats: tuple[str, ...]
    licence: str


@click.command("convert")
@click.argument("old")
@click.argument("new", type=click.Path(path_type=Path))
@_options.architecture
@_options.data
@click.option(
    "--normalisation", default="", help="none, cifar10, imagenet, ... or MEAN,.../STD,..."
)
@click.option(
    "--weights-key", default="", help="Where the state dict lies in the file, such as model_ema."
)
@click.option(
    "--threat",
    "threats",
    multiple=True,
    metavar="NORM:EPS",
    help="Usual threat, for the card; repeatable.",
)
@click.option("--licence", default="", help="Licence of the weights, for the card.")
@_options.trust_code
@_options.typed(ConvertOptions)
def command(options: ConvertOptions) -> None:
    """Loads OLD strictly and safely, and writes NEW.safetensors and its card NEW.toml.

    Classes and image shape come from --dataset, of which one example is read.

    \b
    Example:
      rkd convert net.pth nets/net --arch resnet18 --dataset cifar10 --normalisation cifar10
    """
    from robustbench_kd.checkpoints.card import Architecture, Card, write_card
    from robustbench_kd.checkpoints.convert import write_weights
    from robustbench_kd.checkpoints.target import load
    from robustbench_kd.cli import _console
    from robustbench_kd.core.threat import parse_threats

    if not options.dataset:
        raise UsageError("for which data was it trained? Give --dataset, such as --dataset cifar10")
    target = _target(options)
    data = options.open_test(options.dataset, limit=1)
    channels, height, width = data.images.shape[1:]
    subject = load(target, classes=data.classes, shape=(channels, height, width))

    name = options.new.name.removesuffix(".safetensors").removesuffix(".toml")
    folder = options.new.parent
    card = Card(
        name=name,
        family=subject.family,
        classes=data.classes,
        image_shape=(channels, height, width),
        dataset=options.dataset,
        threats=tuple(str(threat) for threat in parse_threats(list(options.threats))),
        licence=options.licence,
        architecture=Architecture(name=target.architecture, arguments=target.arguments),
        normalisation=subject.normalisation,
        weights=write_weights(subject.network, folder, name),
        made={
            "converted_from": Path(options.old).name,
            "original_sha256": subject.checkpoint_sha256,
        },
    )
    write_card(card, folder / f"{name}.toml")
    for note in subject.notes:
        _console.say(f"{subject.name}: {note}", "dim")
    _console.write(str(folder / f"{name}.toml"))


def _target(options: ConvertOptions) -> "Target":
    """Describes the one checkpoint to convert."""
    from robustbench_kd.checkpoints.target import describe

    targets = describe(options.old, options.choices())
    if len(targets) != 1:
        raise UsageError(f"expected one checkpoint, '{options.old}' holds {len(targets)}")
    if targets[0].parts:
        raise UsageError(f"'{options.old}' is made of parts: convert these")
    return targets[0]
