"""Check a stored run against its adversarial images, trusting nothing else in it."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import (
    CheckpointError,
    IncompleteError,
    UsageError,
    VerificationError,
)

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Target
    from robustbench_kd.core.records import Identity, RunRecord, Source
    from robustbench_kd.engine.reverify.checks import Check
    from robustbench_kd.engine.reverify.reverify import Means


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(_options.DataOptions, _options.LoadingOptions):
    """The options of `rkd verify`."""

    run: Path
    target: str
    checkpoints: Path | None
    batch_size: int
    precision: Literal["fp32", "fp64"]
    device: str
    as_json: bool

    def means(self) -> "Means":
        """Returns how the defence is asked again."""
        import torch

        from robustbench_kd.cli import _devices
        from robustbench_kd.engine.reverify.reverify import Means

        dtype = {"fp32": torch.float32, "fp64": torch.float64}[self.precision]
        return Means(_devices.choose(self.device), dtype, self.batch_size)


@click.command("verify")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("target", default="", metavar="[TARGET]")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    help="Folder of the cards among which the run's is looked up (default: where it was found, "
    "else checkpoints).",
)
@_options.data
@_options.loading
@_options.batch_size(100)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp64"]),
    default="fp32",
    show_default=True,
    help="fp64 asks the model in double precision: verdicts that rounding decided show up.",
)
@_options.device
@_options.trust_code
@_options.as_json
@_options.typed(VerifyOptions)
def command(options: VerifyOptions) -> None:
    """Checks the run in a folder by the images that it kept: rkd eval --save-adversarial.

    The data set and the checkpoint must be those of the record, which says where both were found;
    without it they are looked up among the cards. Every stored image must lie in the
    ball and in the box and have the label of the data set; the defence is asked about it again, and
    about every clean image. Its answers must be those of examples.csv, and give the accuracies of
    run.json. The error rates of a randomized defence on fresh draws must agree with the recorded
    ones as far as the number of draws allows.

    A TARGET is one of 'rkd eval'. Exits with 0 where all checks hold, 1 where one fails, 4 where
    the run is unfinished or has no images.

    \b
    Examples:
      rkd verify results/digits-teacher/a0b44a83b99b92c5
      rkd verify results/net/0123456789abcdef moved/net.pth --arch resnet18 --dataset cifar10
    """
    from robustbench_kd.checkpoints.target import load
    from robustbench_kd.engine.reverify.reverify import verify

    folder, record = _stored(options.run)
    identity = record.identity
    options = _as_recorded(options, record.source)
    target = _target(identity, options)
    data = options.open_test(
        options.dataset or identity.dataset, identity.examples, _options.class_names(target)
    )
    channels, height, width = data.images.shape[1:]
    subject = load(target, classes=data.classes, shape=(channels, height, width))

    checks = verify(folder, record, data, subject, options.means())
    failed = [check.name for check in checks if not check.holds]
    if options.as_json:
        _write(record, checks, options)
    else:
        _show(record, checks)
    if failed:
        raise VerificationError(
            f"{len(failed)} of {len(checks)} checks of '{folder}' fail: {', '.join(failed)}"
        )


def _stored(run: Path) -> tuple[Path, "RunRecord"]:
    """Returns the folder and the record of a finished run with images."""
    from robustbench_kd.core.rundir import ADVERSARIAL, RECORD, read_finished

    folder = run.parent if run.name == RECORD else run
    if not (folder / RECORD).is_file():
        raise UsageError(
            f"'{run}' is no run: expected a folder with a {RECORD}, such as "
            "results/net/0123456789abcdef"
        )
    record = read_finished(folder)
    if not (folder / ADVERSARIAL).exists():
        raise IncompleteError(
            f"'{folder}' has no images: run the same 'rkd eval' again with --save-adversarial"
        )
    return folder, record


def _as_recorded(options: VerifyOptions, source: "Source") -> VerifyOptions:
    """Returns the options with the record's words where a person said nothing.

    A record may come from anywhere: the code that it names runs only if it is trusted.
    """
    if not options.dataset:
        options = replace(options, dataset=source.dataset)
        if options.data_dir == _options.DATA_DIR and source.data_dir:
            options = replace(options, data_dir=Path(source.data_dir))
    if options.target or options.checkpoints or not _is_there(source.target):
        return options

    code = _code_named(source)
    if code and not options.trust_code:
        raise UsageError(
            f"the record names code, {code}: read it, then give --trust-code to run it, or name a "
            "TARGET"
        )
    return replace(
        options,
        target=source.target,
        arch=options.arch or source.arch,
        arch_arg=(*source.arch_arg, *options.arch_arg),
        normalisation=options.normalisation or source.normalisation,
        weights_key=options.weights_key or source.weights_key,
    )


def _is_there(target: str) -> bool:
    """Tells whether a recorded target can be asked: a file that still exists, code or an id."""
    return ":" in target or Path(target or "-").exists()


def _code_named(source: "Source") -> str:
    from robustbench_kd.checkpoints.imports import is_factory

    return next((name for name in (source.arch, source.target) if is_factory(name)), "")


def _target(identity: "Identity", options: VerifyOptions) -> "Target":
    """Returns the target that was given, else the card with the run's weights or name."""
    from robustbench_kd.checkpoints.target import describe

    if options.target:
        described = describe(options.target, options.choices())
        if len(described) > 1:
            raise UsageError(
                f"'{options.target}' holds {len(described)} checkpoints: name the one of "
                f"'{identity.model}'"
            )
        return described[0]

    likeness = partial(_likeness, identity)
    best = max(_cards(options), key=likeness, default=None)
    if best is None or not any(likeness(best)):
        raise UsageError(
            f"which checkpoint is '{identity.model}'? No card in '{_folder(options)}' has its "
            "name or weights: give it as TARGET, or name another folder by --checkpoints"
        )
    return best


def _likeness(identity: "Identity", target: "Target") -> tuple[bool, bool]:
    return target.sha256 == identity.checkpoint_sha256, target.name == identity.model


def _folder(options: VerifyOptions) -> Path:
    return options.checkpoints or Path("checkpoints")


def _cards(options: VerifyOptions) -> Iterator["Target"]:
    """Yields what the cards of a folder describe, without those that cannot be read."""
    from robustbench_kd.checkpoints.target import describe

    for card in sorted(_folder(options).glob("*.toml")):
        with suppress(CheckpointError):
            yield from describe(str(card), options.choices())


def _write(record: "RunRecord", checks: list["Check"], options: VerifyOptions) -> None:
    from robustbench_kd.cli import _console

    _console.write_json(
        {
            "run": record.run_id,
            "holds": all(check.holds for check in checks),
            "precision": options.precision,
            "batch_size": options.batch_size,
            "device": str(options.means().device),
            "checks": [asdict(check) for check in checks],
        }
    )


def _show(record: "RunRecord", checks: list["Check"]) -> None:
    from robustbench_kd.cli import _console

    identity = record.identity
    title = f"{identity.model} {identity.norm}:{identity.eps_text}, run {record.run_id}"
    table = _console.table(title, {"check": "left", "": "left", "what was found": "left"})
    for check in checks:
        cells = (check.name, "holds" if check.holds else "FAILS", check.found)
        table.add_row(*map(_console.plain, cells), style="" if check.holds else "bold red")
    _console.show_table(table)
