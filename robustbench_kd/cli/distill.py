"""Distil a student from robust or standard teachers by a published method."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from robustbench_kd.cli import _options, _training
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.plugins import files

if TYPE_CHECKING:
    from robustbench_kd.training.recipe import Recipe
    from robustbench_kd.training.teachers import TeacherSpec


@dataclass(frozen=True, kw_only=True)
class DistillOptions(_training.TrainingOptions):
    """The options of `rkd distill`."""

    method: str
    teachers: tuple[str, ...]
    student: str
    additions: tuple[str, ...]
    recipe: str
    threat: str


@click.command("distill")
@click.argument("method")
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="CARD",
    help="Card of a teacher, or any other target; repeatable, in the order of the method.",
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
@_options.typed(DistillOptions)
def command(options: DistillOptions) -> None:
    """Distils a student by METHOD and writes a checkpoint with its card.

    METHOD is a name shown by 'rkd list'. Examples for the choice of the best epoch are held out of
    the training split; the test split is never used. The values of a recipe for an addition count
    only with --with. The same command again goes on where it was stopped.

    \b
    Examples:
      rkd distill rslad --teacher checkpoints/digits-teacher.toml --student small_cnn --name rslad
      rkd distill ard --with igdm --teacher checkpoints/digits-teacher.toml --student small_cnn \\
        --arch-arg width=12 --name ard-igdm
      rkd distill iad --teacher robustbench:Chen2021LTD_WRN34_10 --student resnet18 \\
        --dataset cifar10 --threat linf:8/255 --name iad
    """
    from robustbench_kd.distill import open_method
    from robustbench_kd.training.teachers import describe_teacher

    open_method(options.method)  # refuses an unknown method before any file is read
    teachers = tuple(
        describe_teacher(text, trust_code=options.trust_code) for text in options.teachers
    )
    dataset = options.dataset or _usual_dataset(teachers)
    plan = _training.make_plan(
        _recipe(dataset, options),
        options.network(options.student),
        options.threat or _usual_threat(teachers),
        options,
        teachers=teachers,
    )
    _training.run(plan, dataset or _training.dataset_of_recipe(options.recipe), options)


def _recipe(dataset: str, options: DistillOptions) -> "Recipe":
    from robustbench_kd.training.recipe import load_recipe

    method = options.method
    name = options.recipe or _usual_recipe(method, dataset)
    overrides = _options.parse_texts(options.overrides, "--set")
    recipe = load_recipe(name, overrides, additions=options.additions)
    if recipe.method != method:
        raise UsageError(
            f"recipe '{name}' is for '{recipe.method}', not for '{method}': choose another --recipe"
        )
    return recipe


def _usual_recipe(method: str, dataset: str) -> str:
    """Returns the recipe of a method for a data set, or else that of the paper."""
    known = files("distill/recipes", ".toml")
    for prefix in (dataset, "cifar10", "cifar100"):
        name = f"{prefix}-{method}"
        if name in known:
            return name
    raise UsageError(f"there is no recipe for '{method}' by name: give --recipe FILE.toml")


def _usual_dataset(teachers: "tuple[TeacherSpec, ...]") -> str:
    card = teachers[0].target.card if teachers else None
    return card.dataset if card else ""


def _usual_threat(teachers: "tuple[TeacherSpec, ...]") -> str:
    card = teachers[0].target.card if teachers else None
    threat = card.made.get("threat") if card else None
    if not isinstance(threat, str):
        raise UsageError(
            "which threat? Give --threat NORM:EPS, such as --threat linf:8/255: no teacher's card "
            "names one"
        )
    return threat
