"""Train a network by a recipe: plain, PGD adversarial training, TRADES."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Threat, parse_threats

if TYPE_CHECKING:
    from robustbench_kd.cli._console import Line
    from robustbench_kd.training.loop import Observer
    from robustbench_kd.training.make import Plan


@click.command("train")
@click.argument("recipe")
@click.option("--name", required=True, help="Name of the checkpoint; its files are called so.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("checkpoints"),
    show_default=True,
    help="Folder for the weights and the card.",
)
@click.option("--threat", default="linf:0.2", show_default=True, metavar="NORM:EPS", help="Threat to train against.")
@click.option(
    "--card-threat",
    "card_threats",
    multiple=True,
    metavar="NORM:EPS",
    help="Usual threat of the card; repeatable (default: --threat).",
)
@_options.data
@_options.architecture
@click.option("--normalisation", default="none", show_default=True, help="none, cifar10, ... or MEAN,.../STD,...")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a key of the recipe; repeatable.")
@click.option("--licence", default="MIT", show_default=True, help="Licence of the weights, for the card.")
@_options.device
def command(recipe: str, **options: Any) -> None:
    """Trains a network by RECIPE, a name shown by 'rkd list' or a TOML file, and writes a checkpoint with its card.

    Examples for the choice of the best epoch are held out of the training split; the test split is never looked at.

    \b
    Example:
      rkd train digits-pgd-at --name my-net --arch small_cnn --arch-arg width=16 --threat linf:0.2
    """  # fmt: skip
    from robustbench_kd.cli import _console
    from robustbench_kd.datasets import open_dataset
    from robustbench_kd.training.make import make_checkpoint

    plan, named = _plan(recipe, options), options["dataset"] or "digits"
    data = open_dataset(named, split="train", data_dir=options["data_dir"], download=options["download"])
    start = time.monotonic()
    with _console.progress() as line:
        made = make_checkpoint(plan, data, options["out"], _observer(line, plan.name, start))
    best = made.trained.best
    _console.say(
        f"{plan.name}: epoch {best.epoch} of {best.epochs}, validation clean {best.clean_accuracy:.1%}, "
        f"PGD {best.robust_accuracy:.1%} on {plan.recipe.validation} examples, "
        f"{_console.duration(time.monotonic() - start)}"
    )
    _console.write(str(made.path))


def _plan(recipe: str, options: dict[str, Any]) -> "Plan":
    from robustbench_kd.checkpoints.card import Architecture
    from robustbench_kd.checkpoints.normalisation import parse_normalisation
    from robustbench_kd.cli import _devices
    from robustbench_kd.training.make import Plan
    from robustbench_kd.training.recipe import load_recipe

    if not options["arch"]:
        raise UsageError("which network? Give --arch NAME; 'rkd list' shows them")
    threat = Threat.parse(options["threat"])
    usual = parse_threats(list(options["card_threats"])) or [threat]
    return Plan(
        name=options["name"],
        recipe=load_recipe(recipe, _options.parse_texts(options["overrides"], "--set")),
        architecture=Architecture(
            name=options["arch"], arguments=_options.parse_assignments(options["arch_arg"], "--arch-arg")
        ),
        normalisation=parse_normalisation(options["normalisation"]),
        threat=threat,
        threats=tuple(str(known) for known in usual),
        device=_devices.choose(options["device"]),
        licence=options["licence"],
    )


def _observer(line: "Line", name: str, start: float) -> "Observer":
    from robustbench_kd.cli import _console
    from robustbench_kd.training.loop import Epoch, Step

    def show(event: Step | Epoch) -> None:
        if isinstance(event, Epoch):
            accuracies = f"validation clean {event.clean_accuracy:.1%} PGD {event.robust_accuracy:.1%}"
            elapsed = time.monotonic() - start
            left = _console.duration(elapsed / event.epoch * (event.epochs - event.epoch))
            line.show(name, event.epoch, event.epochs, f"loss {event.loss:.3f}  {accuracies}  {left} left")

    return show
