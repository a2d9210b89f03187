"""Shortens names and reasons that come from a file or from another library."""

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
    every = list(names)
    shown = [one_line(name) for name in every[:most]]
    if len(every) > most:
        shown.append("...")
    return ", ".join(shown)


def pairs(arguments: Mapping[str, object]) -> list[str]:
    """Returns arguments as they are typed.

    >>> pairs({"width": 8, "depth": 3})
    ['width=8', 'depth=3']
    """
    return [f"{name}={value}" for name, value in arguments.items()]
