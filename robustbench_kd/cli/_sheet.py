"""Reads what `rkd suite` is to evaluate: a TOML file whose lists are multiplied with each other."""

import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import AfterValidator, ConfigDict, Field, NonNegativeInt, ValidationError

from robustbench_kd.cli import _options
from robustbench_kd.cli import eval as evaluation
from robustbench_kd.core.errors import RkdError, UsageError, unknown_name
from robustbench_kd.core.records import Frozen
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import parse_curve

# Options of `rkd eval` that the lists of a sheet stand for, and those that only a person can give.
_LISTED = {"threat", "suite", "seed", "dataset"}
_TYPED = {"help", "name", "shard", "results", "json", "fresh", "strict", "trust-code"}


def _read_by(parse: Callable[[str], Any]) -> AfterValidator:
    """Returns a check that a text can be read; it stays a text."""

    def check(text: str) -> str:
        try:
            parse(text)
        except RkdError as error:
            raise ValueError(str(error)) from error
        return text

    return AfterValidator(check)


Text = Annotated[str, Field(min_length=1)]
Option = bool | int | float | str | list[int | float | str]


class Sheet(Frozen):
    """Every checkpoint is evaluated on every data set, under every threat, with every suite and seed.

    An entry of `checkpoints` is a target of `rkd eval` or a pattern of files. Without `datasets`
    and `threats` a card says its own. `options` are those of `rkd eval`.
    """

    model_config = ConfigDict(strict=True)

    checkpoints: list[Text] = Field(min_length=1)
    datasets: list[Text] = Field(default=[""], min_length=1)
    threats: list[Annotated[str, _read_by(parse_curve)]] = Field(default_factory=list)
    suites: list[Annotated[str, _read_by(parse_suite)]] = Field(default=["standard"], min_length=1)
    seeds: list[NonNegativeInt] = Field(default=[0], min_length=1)
    options: dict[str, Option] = Field(default_factory=dict)


def read_sheet(path: Path, *, trust_code: bool) -> tuple[Sheet, dict[str, Any]]:
    """Reads a sheet; returns it, with files for patterns, and the options of `rkd eval` as that command has them.

    Raises `UsageError` that names the file, the line, the field and what is wrong with it. What
    names code of its author needs `trust_code`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        sheet = Sheet.model_validate(tomllib.loads(text))
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror}") from error
    except ValidationError as error:
        raise _first_problem(path, text, error) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{path}' is not TOML: {error}") from error
    if not trust_code:
        _check_code(path, text, sheet)
    found = [file for pattern in sheet.checkpoints for file in _matching(path, text, pattern)]
    known = _known_options()
    arguments = [
        part
        for name in sheet.options
        for part in _checked(path, text, name, sheet.options[name], known)
    ]
    return sheet.model_copy(update={"checkpoints": found}), _parsed(
        [*arguments, *(["--trust-code"] if trust_code else [])]
    )


def line_of(text: str, names: Sequence[str], value: str = "") -> int:
    """Returns the line of a field in a TOML text, or the one below it that holds a value, as nearly as can be told.

    >>> line_of("seeds = [0]\\n[options]\\nexamples = 5", ["options", "examples"])
    3
    """
    lines, table = text.split("\n"), ""
    for number, line in enumerate(lines):
        key = line.partition("=")[0].strip(" \t\"'")
        if line.lstrip().startswith("["):
            table = line.partition("]")[0].strip(" \t[\"'")
        elif [*filter(None, [table]), key] == list(names):
            return next(
                (below for below, one in enumerate(lines[number:], number + 1) if value in one),
                number + 1,
            )
    return next((number for number, line in enumerate(lines, 1) if names[-1] in line), 1)


def _wrong(path: Path, text: str, names: Sequence[str], what: str, value: str = "") -> UsageError:
    return UsageError(f"'{path}', line {line_of(text, names, value)}: {'.'.join(names)}: {what}")


def _first_problem(path: Path, text: str, error: ValidationError) -> UsageError:
    # It explains what seems missing.
    problem = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    names = [part for part in problem["loc"] if isinstance(part, str)][
        : 2 if problem["loc"][0] == "options" else 1
    ]
    if problem["type"] == "extra_forbidden":
        return _wrong(path, text, names, str(unknown_name("field", names[0], Sheet.model_fields)))
    value = str(problem["input"]) if isinstance(problem["loc"][-1], int) else ""
    return _wrong(path, text, names, problem["msg"].removeprefix("Value error, "), value)


def _check_code(path: Path, text: str, sheet: Sheet) -> None:
    """Raises `UsageError` where a sheet names code: unlike what is typed, it may be another person's word."""
    from robustbench_kd.checkpoints.zoo import ZOOS

    for names, one in _texts(sheet):
        if ":" in one and one.partition(":")[0] not in ZOOS:
            raise _wrong(
                path,
                text,
                names,
                f"'{one}' names code: read it, then give --trust-code to run it",
                one,
            )


def _texts(sheet: Sheet) -> Iterator[tuple[list[str], str]]:
    """Yields the texts of a sheet that may name code."""
    yield from ((["checkpoints"], one) for one in sheet.checkpoints)
    for name in ("arch", "adaptive", "surrogate"):
        value = sheet.options.get(name, [])
        yield from (
            (["options", name], str(one)) for one in (value if isinstance(value, list) else [value])
        )


def _matching(path: Path, text: str, pattern: str) -> list[str]:
    """Returns the files that a pattern stands for, or the text itself where it is none."""
    if not set(pattern) & set("*?["):
        return [pattern]
    anchor = Path(pattern).anchor
    try:
        found = sorted(map(str, Path(anchor).glob(str(Path(pattern).relative_to(anchor)))))
    except (ValueError, NotImplementedError) as error:
        raise _wrong(
            path, text, ["checkpoints"], f"'{pattern}' is no pattern of files: {error}", pattern
        ) from error
    if not found:
        raise _wrong(path, text, ["checkpoints"], f"no file matches '{pattern}'", pattern)
    return found


def _known_options() -> dict[str, click.Option]:
    options = [option for option in evaluation.command.params if isinstance(option, click.Option)]
    named = {max(option.opts, key=len).removeprefix("--"): option for option in options}
    return {name: option for name, option in named.items() if name not in _LISTED | _TYPED}


def _checked(
    path: Path, text: str, name: str, value: Option, known: dict[str, click.Option]
) -> list[str]:
    """Returns an option as it is typed, after `rkd eval` has taken it."""
    names = ["options", name]
    if name not in known:
        hint = f"; it is a list of its own, '{name}s'" if name in _LISTED else ""
        raise _wrong(path, text, names, f"{unknown_name('option', name, known)}{hint}")
    if isinstance(value, bool) != known[name].is_flag:
        raise _wrong(
            path, text, names, f"expected {'true or false' if known[name].is_flag else 'a value'}"
        )
    typed = _typed(name, value, known[name])
    try:
        params = _parsed(typed)
        _options.parse_examples(params["examples"])
        _options.choices(params)
        evaluation.chosen_batch_size(params)
    except click.UsageError as error:
        raise _wrong(path, text, names, error.format_message()) from error
    except RkdError as error:
        raise _wrong(path, text, names, str(error)) from error
    return typed


def _typed(name: str, value: Option, option: click.Option) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"] if value else option.secondary_opts
    return [f"--{name}={one}" for one in (value if isinstance(value, list) else [value])]


def _parsed(arguments: list[str]) -> dict[str, Any]:
    """Returns the parameters of `rkd eval` for arguments, with its defaults."""
    return dict(evaluation.command.make_context("eval", [*arguments, "target"]).params)
