"""Puts names and reasons that come from a file or from another library into one line."""

from collections.abc import Iterable


def one_line(text: object, most: int = 160) -> str:
    """Returns the first line of a text without control characters, which could steer a terminal."""
    lines = str(text).strip().splitlines()
    return "".join(filter(str.isprintable, lines[0]))[:most] if lines else ""


def listed(names: Iterable[object], most: int = 3) -> str:
    """Returns the first names, and dots where there are more.

    >>> listed(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    first = list(names)
    return ", ".join(map(one_line, first[:most])) + (", ..." if len(first) > most else "")
