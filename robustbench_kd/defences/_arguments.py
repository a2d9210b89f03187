"""Checks of what a card says to a family; each raises `UsageError` that names what was expected and what came."""

from collections.abc import Iterable, Sequence

from torch import nn

from robustbench_kd.core.errors import UsageError, unknown_name
from robustbench_kd.tensors.defence import Randomized


def only_part(parts: Sequence[nn.Module], family: str) -> nn.Module:
    """Returns the one deterministic part of a family that takes no more."""
    if len(parts) != 1:
        raise UsageError(f"expected one part for the family '{family}', got {len(parts)}")
    require_deterministic(parts, family)
    return parts[0]


def require_deterministic(parts: Sequence[nn.Module], family: str) -> None:
    """Refuses parts that answer by chance: they would need keys of their own."""
    for index, part in enumerate(parts):
        if isinstance(part, Randomized):
            raise UsageError(
                f"expected deterministic parts for the family '{family}', got {type(part).__name__} as part {index}, "
                "which answers by chance: name its own parts instead"
            )


def require_whole(name: str, value: object, least: int) -> None:
    """Refuses what is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"expected {name} as a whole number of at least {least}, got {value!r}")


def require_number(name: str, value: object, least: float, most: float) -> None:
    """Refuses what is no number in [least, most]; NaN never is."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UsageError(f"expected {name} as a number in [{least:g}, {most:g}], got {value!r}")


def require_positive(name: str, value: object) -> None:
    """Refuses what is no finite number above 0."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value < float("inf")
    ):
        raise UsageError(f"expected {name} as a number above 0, got {value!r}")


def require_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Refuses what is none of the known names."""
    if value not in known:
        raise unknown_name(name, str(value), known)


def require_flag(name: str, value: object) -> None:
    """Refuses what is neither true nor false."""
    if not isinstance(value, bool):
        raise UsageError(f"expected {name} as true or false, got {value!r}")
