"""Threats.

The norm and radius that an attacker may use, written `linf:8/255`, `l2:0.5`, `l1:12`.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from robustbench_kd.core.errors import UsageError, unknown_name


class Norm(StrEnum):
    """The norms in which a perturbation is measured."""

    LINF = "linf"
    L2 = "l2"
    L1 = "l1"


@dataclass(frozen=True)
class Threat:
    """A norm and a radius; `eps_text` keeps the radius as it was written, `8/255`."""

    norm: Norm
    eps: float
    eps_text: str

    def __str__(self) -> str:
        return f"{self.norm}:{self.eps_text}"

    @classmethod
    def parse(cls, text: str) -> "Threat":
        """Reads one threat; raises `UsageError` for an unknown norm or an impossible radius.

        >>> Threat.parse("linf:8/255").eps
        0.03137254901960784
        """
        name, separator, radius = text.strip().partition(":")
        if not separator:
            raise UsageError(f"expected a threat NORM:EPS such as linf:8/255, got '{text}'")
        if name.lower() not in list(Norm):
            raise unknown_name("norm", name, [str(norm) for norm in Norm])
        norm = Norm(name.lower())
        return cls(norm, _radius(radius.strip(), norm), radius.strip())


def parse_curve(text: str) -> list[Threat]:
    """Reads one threat, or a curve such as `linf:1/255,2/255`, in ascending order.

    >>> [str(threat) for threat in parse_curve("linf:2/255,1/255")]
    ['linf:1/255', 'linf:2/255']
    """
    name, _, radii = text.partition(":")
    curve = (
        {Threat.parse(f"{name}:{radius}") for radius in radii.split(",")}
        if radii
        else {Threat.parse(text)}
    )
    return sorted(curve, key=lambda threat: threat.eps)


def parse_threats(texts: list[str]) -> list[Threat]:
    """Reads threats, each possibly a curve; every curve runs in ascending order."""
    return [threat for text in texts for threat in parse_curve(text)]


def ratio(text: str) -> float:
    """Reads a number or a fraction.

    Raises `ValueError`, `ZeroDivisionError` or `OverflowError` where it is none.

    >>> ratio("8/255")
    0.03137254901960784
    """
    numerator, over, denominator = text.partition("/")
    rough = float(numerator) / (float(denominator) if over else 1)
    # A power of ten with a billion digits is refused before they are written out.
    if not math.isfinite(rough):
        raise OverflowError(f"expected a finite number, got '{text}'")
    return float(Fraction(text)) if rough else rough


def _radius(text: str, norm: Norm) -> float:
    try:
        eps = ratio(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UsageError(
            f"expected eps as a number or fraction such as 0.5 or 8/255, got '{text}'"
        ) from None
    if eps <= 0:
        raise UsageError(f"expected eps above 0, got '{text}'")
    if norm is Norm.LINF and eps > 1:
        hint = f": did you mean {text}/255?" if eps <= 255 and "/" not in text else ""
        raise UsageError(
            f"expected a linf eps of at most 1 for images in [0, 1], got '{text}'{hint}"
        )
    return eps
