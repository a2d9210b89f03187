"""Every error a user can cause, with the exit code that the command line gives it.

    RkdError
    ├── UsageError           2   an option, a name or a card says something impossible
    │   └── MissingError     2   something that only the user knows was not said
    ├── CheckpointError      2   a weights file or card that cannot be loaded safely and completely
    ├── DatasetError         2   images or labels that are missing, empty or out of range
    ├── ModelError           2   a model whose output is not finite logits of the right shape
    ├── RecordError          2   a results folder that cannot be read or written
    ├── RegressionError      1   a gate found that a model became worse
    ├── VerificationError    1   a stored run that is not what its images say
    ├── UnreliableError      3   a number that `--strict` refuses to accept
    ├── IncompleteError      4   work that stopped early and can be resumed
    ├── NotComparableError   4   runs that answer different questions, or lack their counterpart
    └── InternalError       70   an error of the program itself, which nobody foresaw

A message names what was expected, what came, and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class RkdError(Exception):
    """The root of the tree; its text is one line for a person."""

    exit_code = 2


class UsageError(RkdError):
    """An option, a name or a card says something impossible."""


class MissingError(UsageError):
    """Something that only the user knows was not said; it has no default."""


class CheckpointError(RkdError):
    """A weights file or card cannot be loaded safely and completely."""


class DatasetError(RkdError):
    """Images or labels are missing, empty or out of range."""


class ModelError(RkdError):
    """A model does not give finite logits of the right shape."""


class RecordError(RkdError):
    """A results folder cannot be read or written."""


class RegressionError(RkdError):
    """A gate found that a model became worse."""

    exit_code = 1


class VerificationError(RkdError):
    """A stored run is not what its images say."""

    exit_code = 1


class UnreliableError(RkdError):
    """A number that `--strict` refuses to accept."""

    exit_code = 3


class IncompleteError(RkdError):
    """Work stopped early; running the same command again resumes it."""

    exit_code = 4


class NotComparableError(RkdError):
    """Runs answer different questions, or lack their counterpart."""

    exit_code = 4


class InternalError(RkdError):
    """The program itself failed in a way that nobody foresaw."""

    exit_code = 70


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns the error for a name that does not exist, with the nearest one that does.

    >>> str(unknown_name("suite", "standart", ["standard", "rand"]))
    "unknown suite 'standart': did you mean 'standard'? Known: rand, standard"
    """
    choices = sorted(known)
    close = get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f": did you mean '{close[0]}'?" if close else "."
    return UsageError(f"unknown {kind} '{name}'{hint} Known: {', '.join(choices)}")


def reason(error: BaseException) -> str:
    """Returns what foreign code says of its failure, in one line.

    >>> reason(ValueError("too small\\nmore text"))
    'too small'
    """
    return str(error).partition("\n")[0] or type(error).__name__
