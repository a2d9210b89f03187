"""Checks the arguments that a card gives to a family; each check raises `UsageError`."""

from collections.abc import Iterable, Sequence
from math import inf

from torch import nn

from robustbench_kd.core.errors import UsageError, unknown_name
from robustbench_kd.tensors.defence import is_randomized


def only_part(parts: Sequence[nn.Module], family: str) -> nn.Module:
    """Returns the part of a family that takes exactly one, which must be deterministic."""
    if len(parts) != 1:
        raise UsageError(f"expected one part for the family '{family}', got {len(parts)}")
    require_deterministic(parts, family)
    return parts[0]


def require_deterministic(parts: Sequence[nn.Module], family: str) -> None:
    """Refuses randomized parts: they would need keys of their own."""
    for index, part in enumerate(parts):
        if is_randomized(part):
            raise UsageError(
                f"expected deterministic parts for the family '{family}', got "
                f"{type(part).__name__} as part {index}, which is randomized: name its own parts "
                "instead"
            )


def require_whole(name: str, value: object, least: int) -> None:
    """Refuses anything but a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"expected {name} as a whole number of at least {least}, got {value!r}")


def require_number(name: str, value: object, least: float, most: float) -> None:
    """Refuses anything but a number in [least, most], and so NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UsageError(f"expected {name} as a number in [{least:g}, {most:g}], got {value!r}")


def require_positive(name: str, value: object) -> None:
    """Refuses anything but a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
        raise UsageError(f"expected {name} as a number above 0, got {value!r}")


def require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuses a value that is none of the choices."""
    if value not in choices:
        raise unknown_name(name, str(value), choices)


def require_flag(name: str, value: object) -> None:
    """Refuses anything but true and false."""
    if not isinstance(value, bool):
        raise UsageError(f"expected {name} as true or false, got {value!r}")
