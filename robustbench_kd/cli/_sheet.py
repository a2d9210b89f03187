"""Reads what `rkd suite` is to evaluate: a TOML file whose lists are multiplied with each other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import click
from pydantic import AfterValidator, ConfigDict, Field, NonNegativeInt, ValidationError

from robustbench_kd.cli import _eval_options
from robustbench_kd.cli._eval_options import EvalOptions
from robustbench_kd.core.errors import RkdError, UsageError, unknown_name
from robustbench_kd.core.received import parse_toml, read_text
from robustbench_kd.core.records import Frozen
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import parse_curve

# Options of `rkd eval` that the lists of a sheet stand for, and those that only a person can give.
_LISTED = {"threat", "suite", "seed", "dataset"}
_TYPED = {"help", "name", "shard", "results", "json", "fresh", "strict", "trust-code"}


def _read_by(parse: Callable[[str], object]) -> AfterValidator:
    """Returns a check that a text can be read; it stays a text."""

    def check(text: str) -> str:
        try:
            parse(text)
        except RkdError as error:
            raise ValueError(str(error)) from error
        return text

    return AfterValidator(check)


Text = Annotated[str, Field(min_length=1)]
Value = bool | int | float | str | list[int | float | str]


class Sheet(Frozen):
    """Every checkpoint is evaluated on every data set, by every threat, suite and seed.

    An entry of `checkpoints` is a target of `rkd eval` or a pattern of files. Without `datasets`
    and `threats` those of the card are used. `options` are those of `rkd eval`.
    """

    model_config = ConfigDict(strict=True)

    checkpoints: list[Text] = Field(min_length=1)
    datasets: list[Text] = Field(default=[""], min_length=1)
    threats: list[Annotated[str, _read_by(parse_curve)]] = Field(default_factory=list)
    suites: list[Annotated[str, _read_by(parse_suite)]] = Field(default=["standard"], min_length=1)
    seeds: list[NonNegativeInt] = Field(default=[0], min_length=1)
    options: dict[str, Value] = Field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    """A file with its text, so that an error names the line."""

    path: Path
    text: str

    def error(self, names: Sequence[str], problem: str, value: str = "") -> UsageError:
        """Returns the error for a field, or for one value of it."""
        line = line_of(self.text, names, value)
        return UsageError(f"'{self.path}', line {line}: {'.'.join(names)}: {problem}")


def read_sheet(path: Path, *, trust_code: bool) -> tuple[Sheet, EvalOptions]:
    """Reads a sheet; returns it with files for patterns, and the options of `rkd eval`.

    Raises `UsageError` that names the file, the line, the field and the problem. A sheet that names
    code of its author needs `trust_code`.
    """
    file = _File(path, read_text(path, "suite", UsageError))
    try:
        sheet = Sheet.model_validate(parse_toml(file.text, f"suite '{path}'", UsageError))
    except ValidationError as error:
        raise _first_problem(file, error) from error

    if not trust_code:
        _check_code(file, sheet)
    targets: list[str] = []
    for pattern in sheet.checkpoints:
        targets += _matching(file, pattern)

    known = _known_options()
    arguments = ["--trust-code"] if trust_code else []
    for name, value in sheet.options.items():
        arguments += _checked(file, name, value, known)
    return sheet.model_copy(update={"checkpoints": targets}), _parsed(arguments)


def line_of(text: str, names: Sequence[str], value: str = "") -> int:
    """Returns the line of a field in a TOML text, or the next line below it that holds a value.

    It is a guess where the text is unusual.

    >>> line_of("seeds = [0]\\n[options]\\nexamples = 5", ["options", "examples"])
    3
    """
    lines = text.split("\n")
    table = ""
    for number, line in enumerate(lines):
        key = line.partition("=")[0].strip(" \t\"'")
        if line.lstrip().startswith("["):
            table = line.partition("]")[0].strip(" \t[\"'")
        elif [*filter(None, [table]), key] == list(names):
            return _first_with(value, lines, number) or number + 1
    return _first_with(names[-1], lines, 0) or 1


def _first_with(value: str, lines: Sequence[str], start: int) -> int:
    """Returns the number of the first line from `start` on that holds a text, 0 if none does."""
    for number, line in enumerate(lines[start:], start + 1):
        if value in line:
            return number
    return 0


def _first_problem(file: _File, error: ValidationError) -> UsageError:
    # An unknown field explains a field that seems missing, so it comes first.
    problem = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    depth = 2 if problem["loc"][0] == "options" else 1
    names = [part for part in problem["loc"] if isinstance(part, str)][:depth]
    if problem["type"] == "extra_forbidden":
        return file.error(names, str(unknown_name("field", names[0], Sheet.model_fields)))

    in_a_list = isinstance(problem["loc"][-1], int)
    value = str(problem["input"]) if in_a_list else ""
    return file.error(names, problem["msg"].removeprefix("Value error, "), value)


def _check_code(file: _File, sheet: Sheet) -> None:
    """Raises `UsageError` where a sheet names code: it may be the word of another person."""
    from robustbench_kd.checkpoints.zoo import ZOOS

    for names, text in _texts(sheet):
        if ":" in text and text.partition(":")[0] not in ZOOS:
            problem = f"'{text}' names code: read it, then give --trust-code to run it"
            raise file.error(names, problem, text)


def _texts(sheet: Sheet) -> Iterator[tuple[list[str], str]]:
    """Yields the texts of a sheet that may name code."""
    for text in sheet.checkpoints:
        yield ["checkpoints"], text
    for name in ("arch", "adaptive", "surrogate"):
        value = sheet.options.get(name, [])
        for one in value if isinstance(value, list) else [value]:
            yield ["options", name], str(one)


def _matching(file: _File, pattern: str) -> list[str]:
    """Returns the files that match a pattern, or the text itself if it is no pattern."""
    if not set(pattern) & set("*?["):
        return [pattern]
    anchor = Path(pattern).anchor
    try:
        files = sorted(map(str, Path(anchor).glob(str(Path(pattern).relative_to(anchor)))))
    except (ValueError, NotImplementedError) as error:
        problem = f"'{pattern}' is no pattern of files: {error}"
        raise file.error(["checkpoints"], problem, pattern) from error
    if not files:
        raise file.error(["checkpoints"], f"no file matches '{pattern}'", pattern)
    return files


@click.command("eval")
@click.argument("targets", nargs=-1)
@_eval_options.options
def _evaluation(**_values: object) -> None:
    """Reads options as `rkd eval` does."""


def _known_options() -> dict[str, click.Option]:
    known = {}
    for option in _evaluation.params:
        if isinstance(option, click.Option):
            name = max(option.opts, key=len).removeprefix("--")
            if name not in _LISTED | _TYPED:
                known[name] = option
    return known


def _checked(file: _File, name: str, value: Value, known: dict[str, click.Option]) -> list[str]:
    """Returns an option as it is typed, after `rkd eval` has taken it."""
    names = ["options", name]
    if name not in known:
        hint = f"; it is a list of its own, '{name}s'" if name in _LISTED else ""
        raise file.error(names, f"{unknown_name('option', name, known)}{hint}")
    if isinstance(value, bool) != known[name].is_flag:
        kind = "true or false" if known[name].is_flag else "a value"
        raise file.error(names, f"expected {kind}")

    typed = _typed(name, value, known[name])
    try:
        options = _parsed(typed)
        options.open_data()
        options.choices()
        options.chosen_batch_size()
    except click.UsageError as error:
        raise file.error(names, error.format_message()) from error
    except RkdError as error:
        raise file.error(names, str(error)) from error
    return typed


def _typed(name: str, value: Value, option: click.Option) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"] if value else option.secondary_opts
    return [f"--{name}={one}" for one in (value if isinstance(value, list) else [value])]


def _parsed(arguments: list[str]) -> EvalOptions:
    """Returns the options of `rkd eval` for arguments, with its defaults."""
    context = _evaluation.make_context("eval", [*arguments, "target"])
    return EvalOptions(**context.params)
