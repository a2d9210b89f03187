"""Distil a student from robust or standard teachers by a published method."""

from typing import TYPE_CHECKING, Any

import click

from robustbench_kd.cli import _options, _training
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.plugins import files

if TYPE_CHECKING:
    from robustbench_kd.training.recipe import Recipe
    from robustbench_kd.training.teachers import TeacherSpec


@click.command("distill")
@click.argument("method")
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="CARD",
    help="Card of a teacher, or any other target; repeatable, in the order in which the method names them.",
)
@click.option(
    "--student", required=True, help="Architecture ('rkd list'), module:factory or file.py:factory."
)
@click.option(
    "--arch-arg",
    multiple=True,
    metavar="KEY=VALUE",
    help="Argument of the architecture; repeatable.",
)
@click.option(
    "--with",
    "additions",
    multiple=True,
    metavar="NAME",
    help="Addition to the method, igdm; repeatable.",
)
@click.option(
    "--recipe",
    default="",
    metavar="NAME|FILE",
    help="Recipe (default: the method's for digits, or the paper's).",
)
@_training.checkpoint
@click.option(
    "--threat",
    default="",
    metavar="NORM:EPS",
    help="Threat to train against (default: that of the first teacher).",
)
@_options.data
@_training.settings
@_options.device
def command(method: str, **options: Any) -> None:
    """Distils a student by METHOD, a name shown by 'rkd list', and writes a checkpoint with its card.

    Examples for the choice of the best epoch are held out of the training split; the test split is never looked at. What
    a recipe says of an addition only counts with --with. The same command again goes on where it was stopped.

    \b
    Examples:
      rkd distill rslad --teacher checkpoints/digits-teacher.toml --student small_cnn --arch-arg width=12 --name rslad
      rkd distill ard --with igdm --teacher checkpoints/digits-teacher.toml --student small_cnn --name ard-igdm
      rkd distill iad --teacher robustbench:Chen2021LTD_WRN34_10 --student resnet18 --dataset cifar10 --threat linf:8/255 --name iad
    """  # fmt: skip
    from robustbench_kd.distill import open_method
    from robustbench_kd.training.teachers import describe_teacher

    open_method(method)  # a method that does not exist is said before anything else
    teachers = tuple(
        describe_teacher(text, trust_code=options["trust_code"]) for text in options["teachers"]
    )
    dataset = options["dataset"] or _usual_dataset(teachers)
    plan = _training.plan(
        _recipe(method, dataset, options),
        _training.network(options["student"], options),
        options["threat"] or _usual_threat(teachers),
        options,
        teachers=teachers,
    )
    _training.run(plan, dataset, options)


def _recipe(method: str, dataset: str, options: dict[str, Any]) -> "Recipe":
    from robustbench_kd.training.recipe import load_recipe

    name = options["recipe"] or _usual_recipe(method, dataset)
    overrides = _options.parse_texts(options["overrides"], "--set")
    recipe = load_recipe(name, overrides, additions=options["additions"])
    if recipe.method != method:
        raise UsageError(
            f"recipe '{name}' is for '{recipe.method}', not for '{method}': choose another --recipe"
        )
    return recipe


def _usual_recipe(method: str, dataset: str) -> str:
    """Returns the recipe of a method for a data set, or else the one of the paper that is nearest to it."""
    known = files("distill/recipes", ".toml")
    names = [f"{prefix}-{method}" for prefix in (dataset, "cifar10", "cifar100")]
    found = [name for name in names if name in known]
    if not found:
        raise UsageError(f"there is no recipe for '{method}' by name: give --recipe FILE.toml")
    return found[0]


def _usual_dataset(teachers: "tuple[TeacherSpec, ...]") -> str:
    card = teachers[0].target.card if teachers else None
    return card.dataset if card else "digits"


def _usual_threat(teachers: "tuple[TeacherSpec, ...]") -> str:
    card = teachers[0].target.card if teachers else None
    threat = card.made.get("threat") if card else None
    if not isinstance(threat, str):
        raise UsageError(
            "which threat? Give --threat NORM:EPS, such as --threat linf:8/255: no teacher's card names one"
        )
    return threat
