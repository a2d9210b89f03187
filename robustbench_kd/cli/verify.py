"""Check a stored run against its adversarial images, trusting nothing else in it."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import (
    CheckpointError,
    IncompleteError,
    UsageError,
    VerificationError,
)

if TYPE_CHECKING:
    import torch

    from robustbench_kd.checkpoints.subject import Target
    from robustbench_kd.core.records import Identity, RunRecord
    from robustbench_kd.engine.reverify.checks import Check


@click.command("verify")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("target", default="", metavar="[TARGET]")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    default=Path("checkpoints"),
    show_default=True,
    help="Where the cards lie among which the run's is looked up if no TARGET is given.",
)
@_options.data
@_options.loading
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Images per batch.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp64"]),
    default="fp32",
    show_default=True,
    help="fp64 asks the model in double precision: verdicts that rounding decided show up.",
)
@_options.device
@click.option("--trust-code", is_flag=True, help="Run the Python code that a card names.")
@_options.as_json
def command(run: Path, *, target: str, **options: Any) -> None:
    """Checks the run in a folder by the images that it kept: rkd eval --save-adversarial.

    The data set and the checkpoint must be those of the record. Every stored image must lie in the ball and in the box and
    have the label of the data set; the defence is asked about it again, and about every clean image. Its answers must be
    those of examples.csv, and give the accuracies of run.json. Of a randomized defence fresh draws must agree with the
    recorded shares as far as chance allows.

    A TARGET is one of 'rkd eval'. Exits with 0 where all checks hold, 1 where one fails, 4 where the run is unfinished or has
    no images.

    \b
    Examples:
      rkd verify results/digits-teacher/a0b44a83b99b92c5
      rkd verify results/net/0123456789abcdef net.pth --arch resnet18 --dataset cifar10 --precision fp64
    """  # fmt: skip
    from robustbench_kd.checkpoints.target import load
    from robustbench_kd.cli import _console, _devices
    from robustbench_kd.engine.reverify.reverify import Means, verify

    folder, record = _stored(run)
    described = _target(target, record.identity, options)
    data = _options.open_test(
        options["dataset"] or record.identity.dataset, record.identity.examples, options
    )
    channels, height, width = data.images.shape[1:]
    subject = load(described, classes=data.classes, shape=(channels, height, width))
    means = Means(
        _devices.choose(options["device"]), _dtype(options["precision"]), options["batch_size"]
    )
    checks = verify(folder, record, data, subject, means)
    failed = [check.name for check in checks if not check.holds]
    if options["as_json"]:
        how = {name: options[name] for name in ("precision", "batch_size")} | {
            "device": str(means.device)
        }
        _console.write_json(
            {
                "run": record.run_id,
                "holds": not failed,
                **how,
                "checks": [asdict(check) for check in checks],
            }
        )
    else:
        _show(record, checks)
    if failed:
        raise VerificationError(
            f"{len(failed)} of {len(checks)} checks of '{folder}' fail: {', '.join(failed)}"
        )


def _stored(run: Path) -> tuple[Path, "RunRecord"]:
    """Returns the folder and the record of a finished run with images."""
    from robustbench_kd.core.rundir import ADVERSARIAL, RECORD, read_record

    folder = run.parent if run.name == RECORD else run
    if not (folder / RECORD).is_file():
        raise UsageError(
            f"'{run}' is no run: expected a folder with a {RECORD}, such as results/net/0123456789abcdef"
        )
    record = read_record(folder / RECORD)
    if record.status != "complete":
        raise IncompleteError(
            f"'{folder}' is unfinished: run the same 'rkd eval' again to resume it"
        )
    if not (folder / ADVERSARIAL).exists():
        raise IncompleteError(
            f"'{folder}' has no images: run the same 'rkd eval' again with --save-adversarial"
        )
    return folder, record


def _target(text: str, identity: "Identity", options: dict[str, Any]) -> "Target":
    """Returns what the person pointed at, else the card with the run's weights, else the one with its name."""
    from robustbench_kd.checkpoints.target import describe

    if text:
        described = describe(text, _options.choices(options))
        if len(described) > 1:
            raise UsageError(
                f"'{text}' holds {len(described)} checkpoints: name the one of '{identity.model}'"
            )
        return described[0]
    likeness = [(_likeness(target, identity), target) for target in _cards(options)]
    best, found = max(likeness, key=lambda pair: pair[0], default=((False, False), None))
    if found is None or not any(best):
        raise UsageError(
            f"which checkpoint is '{identity.model}'? No card in '{options['checkpoints']}' has its name or weights: "
            "give it as TARGET, or name another folder by --checkpoints"
        )
    return found


def _likeness(target: "Target", identity: "Identity") -> tuple[bool, bool]:
    return target.sha256 == identity.checkpoint_sha256, target.name == identity.model


def _cards(options: dict[str, Any]) -> Iterator["Target"]:
    """Yields what the cards of a folder describe, but for those that cannot be read."""
    from robustbench_kd.checkpoints.target import describe

    for card in sorted(options["checkpoints"].glob("*.toml")):
        with suppress(CheckpointError):
            yield from describe(str(card), _options.choices(options))


def _dtype(precision: str) -> "torch.dtype":
    import torch

    return {"fp32": torch.float32, "fp64": torch.float64}[precision]


def _show(record: "RunRecord", checks: list["Check"]) -> None:
    from robustbench_kd.cli import _console

    identity = record.identity
    title = f"{identity.model} {identity.norm}:{identity.eps_text}, run {record.run_id}"
    table = _console.table(title, {"check": "left", "": "left", "what was found": "left"})
    for check in checks:
        cells = check.name, "holds" if check.holds else "FAILS", check.found
        table.add_row(*map(_console.plain, cells), style="" if check.holds else "bold red")
    _console.show_table(table)
