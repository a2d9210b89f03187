"""Claims on a robust accuracy that a run can settle early: `robust>=0.45`."""

import re

from robustbench_kd.core.errors import UsageError

MISTAKES = 0.05  # the chance at most that a claim is settled wrongly


def parse_claim(text: str) -> float:
    """Returns the accuracy of `robust>=0.45` or `robust>=45%`, a fraction.

    Raises `UsageError` for anything else.

    >>> parse_claim("robust >= 45%")
    0.45
    """
    found = re.fullmatch(r"\s*robust\s*>=\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 < value <= 1:
        raise UsageError(
            f"expected a claim such as 'robust>=0.45', a fraction in (0, 1], got '{text}'"
        )
    return value


def claim_text(accuracy: float) -> str:
    """Returns a claim as `parse_claim` reads it."""
    return f"robust>={accuracy:.10f}".rstrip("0").rstrip(".")
