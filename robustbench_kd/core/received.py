"""Reads text files that may come from anywhere: regular files, bounded, and nothing of it is run.

Budgets are checked before anything is parsed. A file that a person has written stays far below.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from robustbench_kd.core.errors import RkdError
from robustbench_kd.core.files import is_special
from robustbench_kd.core.text import printable

MOST_BYTES = 2**20
MOST_CLASSES = 1_000_000  # the largest data sets have 22,000
_MOST_KEYS = 64  # in a dotted key, or tables and arrays within each other
_MOST_SHOWN = 120

# A key of a dotted chain begins where no other key goes on, so that the search is linear.
_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*"""
_CHAIN = re.compile(rf"(?<![\w-])(?:{_PART}){{{_MOST_KEYS}}}")


def read_text(path: Path, what: str, error: type[RkdError], *, most: int = MOST_BYTES) -> str:
    """Returns the text of a file of at most so many bytes.

    Raises the given error, which names `what` the file is, where it is no regular file of UTF-8.
    """
    try:
        if is_special(path):
            raise error(f"{what} '{path}' is no regular file: name a file")
        size = path.stat().st_size
        if size > most:
            raise error(
                f"{what} '{path}' has {size:,} bytes, expected at most {most:,}: shorten it"
            )
        return path.read_text(encoding="utf-8")
    except OSError as failure:
        raise error(f"cannot read {what} '{path}': {failure.strerror}") from failure
    except UnicodeDecodeError as failure:
        raise error(f"{what} '{path}' is no text in UTF-8: {failure.reason}") from failure


def read_toml(path: Path, what: str, error: type[RkdError]) -> dict[str, Any]:
    """Returns the content of a TOML file; raises the given error like `read_text`."""
    return parse_toml(read_text(path, what, error), f"{what} '{path}'", error)


def parse_toml(text: str, what: str, error: type[RkdError]) -> dict[str, Any]:
    """Returns the content of a TOML text; raises the given error where it is none, or too deep."""
    if _CHAIN.search(text):
        raise error(f"{what} is nested too deep: expected keys of at most {_MOST_KEYS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError as failure:
        raise error(f"{what} is nested too deep: write fewer brackets within brackets") from failure
    except ValueError as failure:  # a number of thousands of digits, too
        said = printable(str(failure).partition(";")[0])[:_MOST_SHOWN]
        raise error(f"{what} is not TOML: {said}") from failure
