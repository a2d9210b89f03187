"""Goes on with other targets where one fails, and names all failures at the end."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from robustbench_kd.core.errors import (
    IncompleteError,
    MissingError,
    RecordError,
    RkdError,
    UsageError,
)
from robustbench_kd.core.unforeseen import unforeseen

Failures = dict[str, RkdError]


@contextmanager
def going_on(failures: Failures, name: str, *, alone: bool = False) -> Iterator[None]:
    """Adds an error to the failures and says it; raises it where the target is `alone`.

    What a person has not said yet is raised, too: it is asked for before anything runs. So is that
    nobody reads standard output any more.
    """
    from robustbench_kd.cli import _console

    try:
        yield
    except (MissingError, BrokenPipeError):
        raise
    except (Exception, SystemExit) as error:
        if alone:
            raise
        failures[name] = own_error(error)
        _console.say(f"{name}: {failures[name]}", "bold red")


def conclude(failures: Failures) -> None:
    """Raises an error that names all failures, with the exit code that they share, else 2."""
    if not failures:
        return
    error = UsageError(f"{len(failures)} failed: {'; '.join(failures)}")
    codes = {failure.exit_code for failure in failures.values()}
    if len(codes) == 1:
        error.exit_code = codes.pop()
    raise error


def own_error(error: BaseException) -> RkdError:
    """Returns an error of our own tree, which has one line and an exit code, for any other."""
    if isinstance(error, RkdError):
        return error
    if isinstance(error, click.ClickException):
        return UsageError(error.format_message())
    if isinstance(error, MemoryError):
        advice = "free some, or use a smaller --batch-size or fewer --examples"
        return IncompleteError(f"out of memory; {advice}")
    if isinstance(error, OSError):
        where = f" '{error.filename}'" if error.filename else ""
        return RecordError(f"cannot read or write{where}: {error.strerror or error}")
    return unforeseen(error)
