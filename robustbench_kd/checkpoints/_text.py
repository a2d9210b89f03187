"""Puts names and reasons that come from a file or from another library into one line."""

from collections.abc import Iterable, Mapping


def one_line(text: object, most: int = 160) -> str:
    """Returns the first line of a text without control characters, which could steer a terminal."""
    lines = str(text).strip().splitlines()
    if not lines:
        return ""
    return "".join(filter(str.isprintable, lines[0]))[:most]


def listed(names: Iterable[object], most: int = 3) -> str:
    """Returns the first names, and dots where there are more.

    >>> listed(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    everything = list(map(one_line, names))
    first = everything[:most]
    if len(everything) > most:
        first.append("...")
    return ", ".join(first)


def spelled(arguments: Mapping[str, object]) -> str:
    """Returns arguments as they follow a name.

    >>> spelled({"width": 8, "depth": 2})
    ' depth=2 width=8'
    """
    return "".join(f" {key}={value}" for key, value in sorted(arguments.items()))
