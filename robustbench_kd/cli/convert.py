"""Convert a weights file to safetensors with a card beside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import UsageError

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Target


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
@click.option("--trust-code", is_flag=True, help="Run the Python code that a card names.")
def command(old: str, new: Path, **options: Any) -> None:
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
    from robustbench_kd.datasets import open_dataset

    if not options["dataset"]:
        raise UsageError("for which data was it trained? Give --dataset, such as --dataset cifar10")
    target = _target(old, options)
    data = open_dataset(
        options["dataset"], limit=1, data_dir=options["data_dir"], download=options["download"]
    )
    channels, height, width = data.images.shape[1:]
    subject = load(target, classes=data.classes, shape=(channels, height, width))
    name, folder = new.name.removesuffix(".safetensors").removesuffix(".toml"), new.parent
    card = Card(
        name=name,
        family=subject.family,
        classes=data.classes,
        image_shape=(channels, height, width),
        dataset=options["dataset"],
        threats=tuple(str(threat) for threat in parse_threats(list(options["threats"]))),
        licence=options["licence"],
        architecture=Architecture(name=target.architecture, arguments=target.arguments),
        normalisation=subject.normalisation,
        weights=write_weights(subject.network, folder, name),
        made={"converted_from": Path(old).name, "original_sha256": subject.checkpoint_sha256},
    )
    write_card(card, folder / f"{name}.toml")
    for note in subject.notes:
        _console.say(f"{subject.name}: {note}", "dim")
    _console.write(str(folder / f"{name}.toml"))


def _target(old: str, options: dict[str, Any]) -> "Target":
    """Describes the one checkpoint that is to be converted."""
    from robustbench_kd.checkpoints.target import describe

    targets = describe(old, _options.choices(options))
    if len(targets) != 1:
        raise UsageError(f"expected one checkpoint, '{old}' holds {len(targets)}")
    if targets[0].parts:
        raise UsageError(f"'{old}' is made of parts: convert these")
    return targets[0]
