"""A gate as the JSON from which shields.io draws a badge (https://shields.io/badges/endpoint-badge)."""

import json

from robustbench_kd.analysis.gate import Gate


def render(gate: Gate) -> str:
    """Returns green for a gate that passed, red for a regression, orange where something was not judged."""
    colour = "red" if gate.failures else "orange" if gate.gaps else "brightgreen"
    return (
        json.dumps(
            {"schemaVersion": 1, "label": "robustness", "message": gate.headline, "color": colour}
        )
        + "\n"
    )
