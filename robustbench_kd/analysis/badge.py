"""A gate as the JSON from which shields.io draws a badge.

Source: https://shields.io/badges/endpoint-badge.
"""

import json

from robustbench_kd.analysis.gate import Gate


def render(gate: Gate) -> str:
    """Returns the badge: green for a pass, red for a regression, orange for gaps."""
    colour = "brightgreen"
    if gate.failures:
        colour = "red"
    elif gate.gaps:
        colour = "orange"
    badge = {
        "schemaVersion": 1,
        "label": "robustness",
        "message": gate.headline,
        "color": colour,
    }
    return json.dumps(badge) + "\n"
