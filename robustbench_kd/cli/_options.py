"""Options that several commands share, and the typed objects that hold their values.

A command declares its options with click and names a dataclass with a field for each of them:
`typed` makes the values one object of that class. Groups of options are classes to inherit from.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import click

from robustbench_kd.cli._streams import output_for_data
from robustbench_kd.core.errors import MissingError, UsageError

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Choices, Target
    from robustbench_kd.engine.passes.speedups import Precision
    from robustbench_kd.tensors.contracts import Dataset

T = TypeVar("T")
Argument: TypeAlias = bool | int | float | str | list[bool | int | float | str]
Command: TypeAlias = Callable[..., None]
Decorator: TypeAlias = Callable[[Command], Command]

DATA_DIR = Path("data")


def typed(kind: Callable[..., T]) -> Callable[[Callable[[T], None]], Command]:
    """Lets a command take one object of a class in place of a keyword argument per option.

    While it runs, foreign code cannot write to standard output.
    """

    def decorate(command: Callable[[T], None]) -> Command:
        @wraps(command)
        def call(**values: object) -> None:
            with output_for_data():
                command(kind(**values))

        return call

    return decorate


def together(*options: Decorator) -> Decorator:
    """Joins option decorators into one, in the order they are listed by `--help`."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which data set, and where it lies."""

    dataset: str
    data_dir: Path
    download: bool

    def open_test(
        self, name: str, limit: int | None, class_names: tuple[str, ...] = ()
    ) -> "Dataset":
        """Opens the test split of a data set and says what was decided on the way.

        Raises like `datasets.open_dataset`.
        """
        from robustbench_kd.cli import _console
        from robustbench_kd.datasets import open_dataset

        data = open_dataset(
            name,
            split="test",
            limit=limit,
            data_dir=self.data_dir,
            download=self.download,
            class_names=class_names,
        )
        for note in data.notes:
            _console.say(f"{data.name}: {note}", "dim")
        return data

    def dataset_of(self, target: "Target") -> str:
        """Returns the data set that was named, else the card's; raises `MissingError`."""
        if self.dataset:
            return self.dataset
        if target.card:
            return target.card.dataset
        raise no_dataset(target.name)


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """What a person says about a checkpoint."""

    arch: str
    arch_arg: tuple[str, ...]
    normalisation: str
    weights_key: str
    trust_code: bool

    def choices(self, name: str = "") -> "Choices":
        """Returns the same for `describe`; `name` is the name in tables."""
        from robustbench_kd.checkpoints.subject import Choices

        return Choices(
            name=name,
            architecture=self.arch,
            arguments=parse_assignments(self.arch_arg, "--arch-arg"),
            normalisation=self.normalisation,
            weights_key=self.weights_key,
            trust_code=self.trust_code,
        )


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """What makes the search faster."""

    precision: "Precision"
    fold: bool
    channels_last: bool
    compile: bool


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How many processes decide, where, and which part."""

    workers: int
    executor: str
    shard: str
    claim: str


results = click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder of the run directories.",
)
device = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
seed = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of all randomness.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")
trust_code = click.option(
    "--trust-code", is_flag=True, help="Run the Python code that a card names."
)
examples = click.option(
    "--examples",
    default="all",
    show_default=True,
    help="First N of the test split in official order (of a folder: spread over classes), or all.",
)
data: Decorator = together(
    click.option(
        "--dataset",
        default="",
        help="digits, cifar10, npz:FILE, folder:PATH, ... (default: the card's).  ",
    ),
    click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        default=DATA_DIR,
        show_default=True,
        help="Where torchvision's data sets lie.",
    ),
    click.option(
        "--download", is_flag=True, help="Fetch a torchvision data set that is not there."
    ),
)
speedups: Decorator = together(
    click.option(
        "--precision",
        type=click.Choice(["fp32", "tf32", "bf16"]),
        default="fp32",
        show_default=True,
        help="Of the search; verdicts are always judged in fp32.",
    ),
    click.option(
        "--fold/--no-fold",
        default=True,
        show_default=True,
        help="Search with batch norm folded into convolutions.",
    ),
    click.option("--channels-last", is_flag=True, help="Search with channels innermost in memory."),
    click.option(
        "--compile",
        is_flag=True,
        help="Search with a compiled model, on a GPU as CUDA graphs.",
    ),
)
architecture_arguments = click.option(
    "--arch-arg",
    multiple=True,
    metavar="KEY=VALUE",
    help="Argument of the architecture or family; repeatable.",
)
architecture: Decorator = together(
    click.option(
        "--arch",
        default="",
        help="Architecture ('rkd list'), module:factory or file.py:factory.",
    ),
    architecture_arguments,
)
loading: Decorator = together(
    architecture,
    click.option(
        "--normalisation",
        default="",
        help="none, cifar10, imagenet, ... or MEAN,.../STD,... (default: the card's).",
    ),
    click.option(
        "--weights-key",
        default="",
        help="Where the state dict lies in the file, such as model_ema.",
    ),
)


workers: Decorator = together(
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes that share the examples; of several GPUs each takes its own.",
    ),
    click.option(
        "--executor",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where the workers run: on this machine, or as tasks of a Ray cluster.",
    ),
    click.option(
        "--shard",
        default="",
        metavar="I/N",
        help="Decide this part of the examples only, for 'rkd merge'.",
    ),
    click.option(
        "--until-decided",
        "claim",
        default="",
        metavar="CLAIM",
        help="Stop as soon as 'robust>=0.45' is proved or refuted; exit 1 if refuted.",
    ),
)


def batch_size(default: int) -> Decorator:
    """Returns the option for the number of images per batch."""
    return click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Images per batch.",
    )


def parse_assignments(texts: tuple[str, ...], option: str) -> dict[str, Argument]:
    """Reads `KEY=VALUE` texts, values as TOML or else as plain text.

    >>> parse_assignments(("width=32", "name=net"), "--arch-arg")
    {'width': 32, 'name': 'net'}
    """
    return {key: _value(value) for key, value in parse_texts(texts, option).items()}


def parse_texts(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """Reads `KEY=VALUE` texts, values as they are."""
    values: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UsageError(f"expected {option} KEY=VALUE, got '{text}'")
        values[key.strip()] = value
    return values


def no_dataset(name: str) -> MissingError:
    """Returns the error for a checkpoint whose data set nobody has named."""
    return MissingError(
        f"which images for '{name}'? Give --dataset NAME, such as --dataset cifar10, folder:PATH "
        "or npz:FILE"
    )


def class_names(target: "Target") -> tuple[str, ...]:
    """Returns the names of classes in the order of a checkpoint, where its card has them."""
    return target.card.class_names if target.card else ()


def parse_examples(text: str) -> int | None:
    """Reads `--examples`: a positive number, or None for `all`."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"expected --examples as a positive number or all, got '{text}'")
    return int(text)


def _value(text: str) -> Argument:
    try:
        value: Argument = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    return value
