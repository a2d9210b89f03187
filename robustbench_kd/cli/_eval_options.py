"""The options of `rkd eval`, as click declares them and as one typed object.

`rkd suite` reads the same options from a file.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.engines import engine_traits
from robustbench_kd.core.errors import MissingError, UsageError
from robustbench_kd.core.records import Source
from robustbench_kd.core.suites import Suite, parse_suite
from robustbench_kd.core.threat import Threat, parse_curve

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Target
    from robustbench_kd.engine.passes.speedups import Speedups
    from robustbench_kd.tensors.contracts import Dataset

Curve: TypeAlias = list[Threat]
OpenData: TypeAlias = Callable[[str, tuple[str, ...]], "Dataset"]

options: _options.Decorator = _options.together(
    click.option(
        "--threat",
        "threats",
        multiple=True,
        metavar="NORM:EPS",
        help="linf:8/255, l2:0.5, l1:12, or a curve linf:1/255,2/255; repeatable "
        "(default: the card's).",
    ),
    click.option(
        "--suite",
        default="standard",
        show_default=True,
        help="standard, plus, rand, quick, standard+adaptive, or attacks: apgd-ce,square.",
    ),
    click.option(
        "--mode",
        type=click.Choice(["exact", "fast"]),
        default="exact",
        show_default=True,
        help="fast estimates standard: short attacks, then long ones on a sample, with a bound.",
    ),
    click.option(
        "--surrogate",
        "surrogates",
        multiple=True,
        metavar="TARGET",
        help="Stand-in model for adaptive attacks; repeatable.",
    ),
    click.option(
        "--adaptive",
        "attacks",
        multiple=True,
        metavar="FILE.py:ATTACK",
        help="Adaptive attack of your own; repeatable.",
    ),
    _options.examples,
    _options.data,
    _options.loading,
    click.option(
        "--name",
        default="",
        help="Name of the model in tables (default: the card's, or the file's).",
    ),
    click.option(
        "--engine",
        default="native",
        show_default=True,
        help="native is our own engine, autoattack runs the AutoAttack package.",
    ),
    click.option(
        "--batch-size",
        default="auto",
        show_default=True,
        help="Images per batch, or auto: found by trial.",
    ),
    _options.speedups,
    _options.seed,
    _options.device,
    _options.results,
    _options.workers,
    click.option("--no-probes", is_flag=True, help="Do not check the model before the attacks."),
    click.option(
        "--save-adversarial",
        is_flag=True,
        help="Keep the images that decide, for 'rkd verify' and 'rkd report'.",
    ),
    click.option(
        "--fresh", is_flag=True, help="Ignore stored and unfinished results of the same question."
    ),
    click.option("--strict", is_flag=True, help="Exit 3 if a number is unreliable."),
    _options.trust_code,
    _options.as_json,
)


@dataclass(frozen=True, kw_only=True)
class EvalOptions(
    _options.DataOptions,
    _options.LoadingOptions,
    _options.SpeedOptions,
    _options.WorkerOptions,
):
    """The options of `rkd eval`, one field each."""

    targets: tuple[str, ...]
    threats: tuple[str, ...]
    suite: str
    mode: str
    surrogates: tuple[str, ...]
    attacks: tuple[str, ...]
    examples: str
    name: str
    engine: str
    batch_size: str
    seed: int
    device: str
    results: Path
    no_probes: bool
    save_adversarial: bool
    fresh: bool
    strict: bool
    as_json: bool

    def chosen_suite(self) -> Suite:
        """Reads --suite and --mode, and refuses options that do not go with them."""
        suite = parse_suite(self.suite)
        if (self.surrogates or self.attacks) and not suite.adaptive:
            raise UsageError(
                "--surrogate and --adaptive need an adaptive suite: use "
                f"--suite {suite.name}+adaptive"
            )
        if engine_traits(self.engine).batch_matters and self.speedups().label != "fp32":
            raise UsageError(
                "--precision, --channels-last and --compile speed up --engine native only"
            )
        if self.mode != "fast":
            return suite
        if suite.name != "standard":
            raise UsageError(
                f"--mode fast is a short form of --suite standard, got --suite {suite.name}"
            )
        return replace(parse_suite("fast"), name=suite.name)

    def chosen_batch_size(self) -> int:
        """Reads --batch-size; 0 stands for auto where verdicts do not depend on it."""
        text = self.batch_size
        if text == "auto":
            return engine_traits(self.engine).batch_size
        if not text.isdecimal() or int(text) == 0:
            raise UsageError(f"expected --batch-size as a positive number or auto, got '{text}'")
        return int(text)

    def speedups(self) -> "Speedups":
        """Returns what makes the search faster; the AutoAttack package takes nothing."""
        from robustbench_kd.engine.passes.speedups import Speedups

        batch_matters = engine_traits(self.engine).batch_matters
        return Speedups(
            precision=self.precision,
            fold=self.fold and not batch_matters,
            channels_last=self.channels_last,
            compile=self.compile,
        )

    def curves(self, target: "Target") -> list[Curve]:
        """Returns the threats that were given, else those of the card, each by itself.

        Raises `UsageError` where there is none.
        """
        if self.threats:
            return [parse_curve(text) for text in self.threats]
        return card_curves(target)

    def source(self, target: "Target") -> Source:
        """Returns where `rkd verify` finds a target and its data again."""
        return Source(
            target=target.text,
            arch=self.arch,
            arch_arg=self.arch_arg,
            normalisation=self.normalisation,
            weights_key=self.weights_key,
            dataset=self.dataset_of(target),
            data_dir=str(self.data_dir),
        )

    def open_data(self) -> OpenData:
        """Returns a function that opens a data set by name, once however often it is called."""
        limit = _options.parse_examples(self.examples)
        return cache(lambda name, names: self.open_test(name, limit, names))


def no_threat(name: str) -> MissingError:
    """Returns the error for a checkpoint whose threat nobody has named."""
    return MissingError(
        f"which threat for '{name}'? Give --threat NORM:EPS, such as --threat linf:8/255"
    )


def card_curves(target: "Target") -> list[Curve]:
    """Returns the threats of a card, each by itself; raises `MissingError` where it names none."""
    if target.card is None or not target.card.threats:
        raise no_threat(target.name)
    return [[Threat.parse(text)] for text in target.card.threats]
