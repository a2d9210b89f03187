"""What the commands that train share: options, progress, and the line at the end."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.plugins import components
from robustbench_kd.core.text import duration
from robustbench_kd.core.threat import Threat, parse_threats

if TYPE_CHECKING:
    from robustbench_kd.cli._console import Line
    from robustbench_kd.tensors.contracts import Dataset
    from robustbench_kd.training.design import Composition, Network
    from robustbench_kd.training.events import Accuracies, Epoch, Observer, Step
    from robustbench_kd.training.make import Made, Plan
    from robustbench_kd.training.recipe import Recipe
    from robustbench_kd.training.teachers import TeacherSpec


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(_options.DataOptions):
    """The options of all commands that train."""

    name: str
    out: Path
    card_threats: tuple[str, ...]
    arch_arg: tuple[str, ...]
    normalisation: str
    overrides: tuple[str, ...]
    licence: str
    trust_code: bool
    device: str

    def network(self, architecture: str) -> "Network":
        """Returns the network that the options describe."""
        from robustbench_kd.checkpoints.card import Architecture
        from robustbench_kd.checkpoints.normalisation import parse_normalisation
        from robustbench_kd.training.design import Network

        arguments = _options.parse_assignments(self.arch_arg, "--arch-arg")
        return Network(
            Architecture(name=architecture, arguments=arguments),
            parse_normalisation(self.normalisation),
        )


def dataset_of_recipe(recipe: str) -> str:
    """Returns the data set that the name of a recipe such as `digits-trades` begins with.

    Raises `UsageError` where it names none, as a recipe of one's own: no data are taken unasked.
    """
    dataset = recipe.partition("-")[0]
    if recipe.endswith(".toml") or dataset not in components("datasets"):
        raise UsageError(
            "which data set? Give --dataset, such as --dataset digits: neither a card nor the name "
            "of the recipe names one"
        )
    return dataset


checkpoint: _options.Decorator = _options.together(
    click.option("--name", required=True, help="Name of the checkpoint and of its files."),
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("checkpoints"),
        show_default=True,
        help="Folder for the weights and the card.",
    ),
    click.option(
        "--card-threat",
        "card_threats",
        multiple=True,
        metavar="NORM:EPS",
        help="Usual threat of the card; repeatable (default: --threat).",
    ),
)
settings: _options.Decorator = _options.together(
    click.option(
        "--normalisation",
        default="none",
        show_default=True,
        help="none, cifar10, ... or MEAN,.../STD,...",
    ),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Replace a key of the recipe, such as epochs or options.temperature; repeatable.",
    ),
    click.option(
        "--licence",
        default="MIT",
        show_default=True,
        help="Licence of the weights, for the card.",
    ),
    click.option(
        "--trust-code",
        is_flag=True,
        help="Run the Python code that the card of a part or teacher names.",
    ),
)


def make_plan(
    recipe: "Recipe",
    design: "Network | Composition",
    threat: str,
    options: TrainingOptions,
    *,
    teachers: "tuple[TeacherSpec, ...]" = (),
) -> "Plan":
    """Returns what is to be trained, by the options that the commands share."""
    from robustbench_kd.cli import _devices
    from robustbench_kd.training.make import Plan

    chosen = Threat.parse(threat)
    usual = parse_threats(list(options.card_threats)) or [chosen]
    worker = int(os.environ.get("LOCAL_RANK", "0")) + 1
    return Plan(
        name=options.name,
        recipe=recipe,
        design=design,
        threat=chosen,
        threats=tuple(str(one) for one in usual),
        device=_devices.choose(_devices.of_worker(options.device, worker)),
        licence=options.licence,
        teachers=teachers,
    )


def run(plan: "Plan", dataset: str, options: TrainingOptions) -> None:
    """Trains, shows the progress, and writes where the card lies.

    Of several processes only the first one writes to the terminal.
    """
    from robustbench_kd.datasets import open_dataset
    from robustbench_kd.training import distributed
    from robustbench_kd.training.make import make_checkpoint

    data = open_dataset(
        dataset, split="train", data_dir=options.data_dir, download=options.download
    )
    with distributed.joined(plan.device):
        if distributed.leads():
            _show(plan, data, options.out)
        else:
            make_checkpoint(plan, data, options.out, lambda _: None)


def _show(plan: "Plan", data: "Dataset", folder: Path) -> None:
    from robustbench_kd.cli import _console
    from robustbench_kd.training.make import make_checkpoint

    start = time.monotonic()
    with _console.progress() as line:
        made = make_checkpoint(plan, data, folder, _observer(line, plan.name))
    _console.say(f"{_outcome(plan, made)}, {duration(time.monotonic() - start)}")
    _console.write(str(made.path))


def _outcome(plan: "Plan", made: "Made") -> str:
    epochs = plan.recipe.epochs
    training = f"epoch {made.trained.best_epoch} of {epochs}" if epochs else "fitted"
    validation = _validation(made.trained.validation)
    return f"{plan.name}: {training}, {validation} on {plan.recipe.validation} examples"


def _validation(found: "Accuracies") -> str:
    robust = "" if found.robust is None else f", PGD {found.robust:.1%}"
    return f"validation clean {found.clean:.1%}{robust}"


def _loss(epoch: "Epoch") -> str:
    """Returns the loss with the terms it is the sum of, where there are several."""
    terms = " + ".join(f"{name} {value:.3f}" for name, value in epoch.terms.items())
    return f"loss {epoch.loss:.3f}" + (f" = {terms}" if len(epoch.terms) > 1 else "")


def _observer(line: "Line", name: str) -> "Observer":
    from robustbench_kd.training.events import Epoch

    ends = [time.monotonic()]

    def show(event: "Step | Epoch") -> None:
        if isinstance(event, Epoch):
            ends.append(time.monotonic())  # a resumed training has seen only some of its epochs
            seconds = (ends[-1] - ends[0]) / (len(ends) - 1) * (event.epochs - event.epoch)
            details = f"{_loss(event)}  {_validation(event.validation)}  {duration(seconds)} left"
            line.show(name, event.epoch, event.epochs, details)

    return show
