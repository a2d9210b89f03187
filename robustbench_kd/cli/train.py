"""Train a network by a recipe, or compose a defence of trained parts and train or fit it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_kd.cli import _options, _training
from robustbench_kd.core.errors import UsageError

if TYPE_CHECKING:
    from robustbench_kd.training.design import Composition, Network


@click.command("train")
@click.argument("recipe")
@_training.checkpoint
@click.option(
    "--threat",
    default="linf:0.2",
    show_default=True,
    metavar="NORM:EPS",
    help="Threat to train against.",
)
@_options.data
@_options.architecture
@click.option(
    "--family",
    default="",
    help="Family of a composed defence ('rkd list'); --arch-arg gives its arguments.",
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Card of a part of it, in the folder --out; repeatable.",
)
@_training.settings
@_options.device
def command(recipe: str, **options: Any) -> None:
    """Trains a network by RECIPE, a name shown by 'rkd list' or a TOML file, and writes a checkpoint with its card.

    With --family and --part it composes a defence of trained parts instead. These stay as they are: the recipe
    optimises only what stands around them, or with 0 epochs lets the family fit itself to the data.

    Examples for the choice of the best epoch are held out of the training split; the test split is never looked at.
    The same command again goes on where it was stopped.

    \b
    Examples:
      rkd train digits-pgd-at --name my-net --arch small_cnn --arch-arg width=16 --threat linf:0.2
      rkd train digits-frontend --name front --family frontend --part checkpoints/my-net.toml --arch-arg depth=33
      rkd train fit --name mixed --family ensemble --part checkpoints/my-net.toml --part checkpoints/front.toml
    """  # fmt: skip
    from robustbench_kd.training.recipe import load_recipe

    chosen = load_recipe(recipe, _options.parse_texts(options["overrides"], "--set"))
    design = _composition(options) if options["family"] or options["parts"] else _network(options)
    plan = _training.plan(chosen, design, options["threat"], options)
    _training.run(plan, options["dataset"] or _usual_dataset(options["parts"]), options)


def _network(options: dict[str, Any]) -> "Network":
    if not options["arch"]:
        raise UsageError(
            "which network? Give --arch NAME, or --family and --part for a composed defence; 'rkd list' shows them"
        )
    return _training.network(options["arch"], options)


def _composition(options: dict[str, Any]) -> "Composition":
    from robustbench_kd.training.design import Composition

    if not (options["family"] and options["parts"]):
        raise UsageError("expected --family and --part together: a composed defence has both")
    if options["arch"] or options["normalisation"] != "none":
        raise UsageError(
            "a composed defence is made of parts: leave out --arch and --normalisation"
        )
    arguments = _options.parse_assignments(options["arch_arg"], "--arch-arg")
    return Composition(
        options["family"], options["parts"], arguments, trust_code=options["trust_code"]
    )


def _usual_dataset(parts: tuple[Path, ...]) -> str:
    from robustbench_kd.checkpoints.card import read_card

    return read_card(parts[0]).dataset if parts else "digits"
