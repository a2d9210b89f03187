"""Train a network by a recipe, or compose a defence of trained parts and train or fit it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Threat, parse_threats

if TYPE_CHECKING:
    from robustbench_kd.cli._console import Line
    from robustbench_kd.training.design import Composition, Network
    from robustbench_kd.training.loop import Accuracies, Observer
    from robustbench_kd.training.make import Made, Plan


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
@click.option("--family", default="", help="Family of a composed defence ('rkd list'); --arch-arg gives its arguments.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Card of a part of it, in the folder --out; repeatable.",
)
@click.option("--normalisation", default="none", show_default=True, help="none, cifar10, ... or MEAN,.../STD,...")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a key of the recipe; repeatable.")
@click.option("--licence", default="MIT", show_default=True, help="Licence of the weights, for the card.")
@click.option("--trust-code", is_flag=True, help="Run the Python code that the card of a part names.")
@_options.device
def command(recipe: str, **options: Any) -> None:
    """Trains a network by RECIPE, a name shown by 'rkd list' or a TOML file, and writes a checkpoint with its card.

    With --family and --part it composes a defence of trained parts instead. These stay as they are: the recipe
    optimises only what stands around them, or with 0 epochs lets the family fit itself to the data.

    Examples for the choice of the best epoch are held out of the training split; the test split is never looked at.

    \b
    Examples:
      rkd train digits-pgd-at --name my-net --arch small_cnn --arch-arg width=16 --threat linf:0.2
      rkd train digits-frontend --name front --family frontend --part checkpoints/my-net.toml --arch-arg depth=33
      rkd train fit --name mixed --family ensemble --part checkpoints/my-net.toml --part checkpoints/front.toml
    """  # fmt: skip
    from robustbench_kd.cli import _console
    from robustbench_kd.datasets import open_dataset
    from robustbench_kd.training.make import make_checkpoint

    plan = _plan(recipe, options)
    data = open_dataset(
        options["dataset"] or _usual_dataset(options["parts"]),
        split="train",
        data_dir=options["data_dir"],
        download=options["download"],
    )
    start = time.monotonic()
    with _console.progress() as line:
        made = make_checkpoint(plan, data, options["out"], _observer(line, plan.name, start))
    _console.say(f"{_outcome(plan, made)}, {_console.duration(time.monotonic() - start)}")
    _console.write(str(made.path))


def _plan(recipe: str, options: dict[str, Any]) -> "Plan":
    from robustbench_kd.cli import _devices
    from robustbench_kd.training.make import Plan
    from robustbench_kd.training.recipe import load_recipe

    threat = Threat.parse(options["threat"])
    usual = parse_threats(list(options["card_threats"])) or [threat]
    return Plan(
        name=options["name"],
        recipe=load_recipe(recipe, _options.parse_texts(options["overrides"], "--set")),
        design=_composition(options) if options["family"] or options["parts"] else _network(options),
        threat=threat,
        threats=tuple(str(known) for known in usual),
        device=_devices.choose(options["device"]),
        licence=options["licence"],
    )


def _network(options: dict[str, Any]) -> "Network":
    from robustbench_kd.checkpoints.card import Architecture
    from robustbench_kd.checkpoints.normalisation import parse_normalisation
    from robustbench_kd.training.design import Network

    if not options["arch"]:
        raise UsageError(
            "which network? Give --arch NAME, or --family and --part for a composed defence; 'rkd list' shows them"
        )
    return Network(
        Architecture(name=options["arch"], arguments=_options.parse_assignments(options["arch_arg"], "--arch-arg")),
        parse_normalisation(options["normalisation"]),
    )


def _composition(options: dict[str, Any]) -> "Composition":
    from robustbench_kd.training.design import Composition

    if not (options["family"] and options["parts"]):
        raise UsageError("expected --family and --part together: a composed defence has both")
    if options["arch"] or options["normalisation"] != "none":
        raise UsageError("a composed defence is made of parts: leave out --arch and --normalisation")
    arguments = _options.parse_assignments(options["arch_arg"], "--arch-arg")
    return Composition(options["family"], options["parts"], arguments, trust_code=options["trust_code"])


def _usual_dataset(parts: tuple[Path, ...]) -> str:
    from robustbench_kd.checkpoints.card import read_card

    return read_card(parts[0]).dataset if parts else "digits"


def _outcome(plan: "Plan", made: "Made") -> str:
    epoch, epochs = made.trained.best_epoch, plan.recipe.epochs
    did = f"epoch {epoch} of {epochs}" if epochs else "fitted"
    return f"{plan.name}: {did}, {_validation(made.trained.validation)} on {plan.recipe.validation} examples"


def _validation(found: "Accuracies") -> str:
    robust = "" if found.robust is None else f", PGD {found.robust:.1%}"
    return f"validation clean {found.clean:.1%}{robust}"


def _observer(line: "Line", name: str, start: float) -> "Observer":
    from robustbench_kd.cli import _console
    from robustbench_kd.training.loop import Epoch, Step

    def show(event: Step | Epoch) -> None:
        if isinstance(event, Epoch):
            elapsed = time.monotonic() - start
            left = _console.duration(elapsed / event.epoch * (event.epochs - event.epoch))
            line.show(
                name, event.epoch, event.epochs, f"loss {event.loss:.3f}  {_validation(event.validation)}  {left} left"
            )

    return show
