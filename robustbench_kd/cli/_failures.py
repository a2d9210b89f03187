"""Goes on with other targets where one fails, and names all failures at the end."""

from collections.abc import Iterator
from contextlib import contextmanager

from robustbench_kd.cli import _console
from robustbench_kd.core.errors import IncompleteError, MissingError, RkdError, UsageError

Failures = dict[str, RkdError]


@contextmanager
def going_on(failures: Failures, name: str, *, alone: bool = False) -> Iterator[None]:
    """Adds an error to the failures and says it; raises it where the target is `alone`.

    What a person has not said yet is raised, too: it is asked for before anything runs.
    """
    try:
        yield
    except MissingError:
        raise
    except RkdError as error:
        if alone:
            raise
        failures[name] = error
        _console.say(f"{name}: {error}", "bold red")


def conclude(failures: Failures) -> None:
    """Raises an error that names all failures: an incomplete one if all can be resumed."""
    if not failures:
        return
    resumable = all(isinstance(error, IncompleteError) for error in failures.values())
    kind = IncompleteError if resumable else UsageError
    raise kind(f"{len(failures)} failed: {'; '.join(failures)}")
