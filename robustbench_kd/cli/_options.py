"""Options that several commands share."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robustbench_kd.core.errors import UsageError

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Choices
    from robustbench_kd.tensors.contracts import Dataset

Command = TypeVar("Command", bound=Callable[..., Any])


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Joins option decorators into one, in the order they are listed by `--help`."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


results = click.option(
    "--results", type=click.Path(file_okay=False, path_type=Path), default=Path("results"), show_default=True,
    help="Folder of the run directories.",
)  # fmt: skip
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
data: Callable[[Command], Command] = together(
    click.option("--dataset", default="", help="digits, cifar10, npz:FILE, folder:PATH, ... (default: the card's).  "),
    click.option("--data-dir", type=click.Path(path_type=Path), default=Path("data"), show_default=True,
                 help="Where torchvision's data sets lie."),
    click.option("--download", is_flag=True, help="Fetch a torchvision data set that is not there."),
)  # fmt: skip
speedups: Callable[[Command], Command] = together(
    click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16"]), default="fp32", show_default=True,
                 help="Of the search; verdicts are always judged in fp32."),
    click.option("--fold/--no-fold", default=True, show_default=True,
                 help="Search with batch norm folded into convolutions."),
    click.option("--channels-last", is_flag=True, help="Search with channels innermost in memory."),
    click.option("--compile", is_flag=True, help="Search with a compiled model, on a GPU as CUDA graphs."),
)  # fmt: skip
architecture: Callable[[Command], Command] = together(
    click.option(
        "--arch", default="", help="Architecture ('rkd list'), module:factory or file.py:factory."
    ),
    click.option(
        "--arch-arg",
        multiple=True,
        metavar="KEY=VALUE",
        help="Argument of the architecture or family; repeatable.",
    ),
)

loading: Callable[[Command], Command] = together(
    architecture,
    click.option("--normalisation", default="",
                 help="none, cifar10, imagenet, ... or MEAN,.../STD,... (default: the card's)."),
    click.option("--weights-key", default="", help="Where the state dict lies in the file, such as model_ema."),
)  # fmt: skip


def parse_assignments(texts: tuple[str, ...], option: str) -> dict[str, Any]:
    """Reads `KEY=VALUE` texts, values as TOML or else as plain text.

    >>> parse_assignments(("width=32", "name=net"), "--arch-arg")
    {'width': 32, 'name': 'net'}
    """
    return {key: _value(value) for key, value in parse_texts(texts, option).items()}


def choices(options: dict[str, Any]) -> "Choices":
    """Returns what a person said of a checkpoint by the options that loading commands share."""
    from robustbench_kd.checkpoints.subject import Choices

    return Choices(
        name=options.get("name", ""),
        architecture=options["arch"],
        arguments=parse_assignments(options["arch_arg"], "--arch-arg"),
        normalisation=options["normalisation"],
        weights_key=options["weights_key"],
        trust_code=options["trust_code"],
    )


def open_test(name: str, limit: int | None, options: dict[str, Any]) -> "Dataset":
    """Opens the test split of a data set; raises like `datasets.open_dataset`."""
    from robustbench_kd.datasets import open_dataset

    where = Path(options["data_dir"])
    return open_dataset(
        name, split="test", limit=limit, data_dir=where, download=options["download"]
    )


def parse_texts(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """Reads `KEY=VALUE` texts, values as they are."""
    found: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UsageError(f"expected {option} KEY=VALUE, got '{text}'")
        found[key.strip()] = value
    return found


def parse_examples(text: str) -> int | None:
    """Reads `--examples`: a positive number, or None for `all`."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"expected --examples as a positive number or all, got '{text}'")
    return int(text)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
