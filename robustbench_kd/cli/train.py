"""Train a network by a recipe, or compose a defence of trained parts and train or fit it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustbench_kd.cli import _options, _training
from robustbench_kd.core.errors import UsageError

if TYPE_CHECKING:
    from robustbench_kd.training.design import Composition, Network


@dataclass(frozen=True, kw_only=True)
class TrainOptions(_training.TrainingOptions):
    """The options of `rkd train`."""

    recipe: str
    threat: str
    arch: str
    family: str
    parts: tuple[Path, ...]


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
@_options.typed(TrainOptions)
def command(options: TrainOptions) -> None:
    """Trains a network by RECIPE and writes a checkpoint with its card.

    RECIPE is a name shown by 'rkd list' or a TOML file. With --family and --part it composes a
    defence of trained parts instead. The parts stay as they are: the recipe optimises only what is
    around them, or with 0 epochs lets the family fit itself to the data.

    Examples for the choice of the best epoch are held out of the training split; the test split is
    never used. The same command again goes on where it was stopped.

    \b
    Examples:
      rkd train digits-pgd-at --name my-net --arch small_cnn --arch-arg width=16
      rkd train digits-frontend --name front --family frontend --part checkpoints/my-net.toml
      rkd train fit --name mixed --family ensemble --part checkpoints/my-net.toml \\
        --part checkpoints/front.toml
    """
    from robustbench_kd.training.recipe import load_recipe

    overrides = _options.parse_texts(options.overrides, "--set")
    recipe = load_recipe(options.recipe, overrides)
    is_composed = options.family or options.parts
    design = _composition(options) if is_composed else _network(options)
    plan = _training.make_plan(recipe, design, options.threat, options)
    _training.run(plan, options.dataset or _usual_dataset(options), options)


def _network(options: TrainOptions) -> "Network":
    if not options.arch:
        raise UsageError(
            "which network? Give --arch NAME, or --family and --part for a composed defence; "
            "'rkd list' shows them"
        )
    return options.network(options.arch)


def _composition(options: TrainOptions) -> "Composition":
    from robustbench_kd.training.design import Composition

    if not (options.family and options.parts):
        raise UsageError("expected --family and --part together: a composed defence has both")
    if options.arch or options.normalisation != "none":
        raise UsageError(
            "a composed defence is made of parts: leave out --arch and --normalisation"
        )
    arguments = _options.parse_assignments(options.arch_arg, "--arch-arg")
    return Composition(options.family, options.parts, arguments, trust_code=options.trust_code)


def _usual_dataset(options: TrainOptions) -> str:
    from robustbench_kd.checkpoints.card import read_card

    if options.parts:
        return read_card(options.parts[0]).dataset
    return _training.dataset_of_recipe(options.recipe)
