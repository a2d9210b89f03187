"""The model was loaded in training mode."""

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import Probe


def probe(sample: Probe) -> list[Finding]:
    """Returns an info finding if the model was put in evaluation mode.

    Dropout that ignores the mode is found as randomness, batch statistics as batch dependence.
    """
    if not sample.was_training:
        return []

    message = "the model was left in training mode; it was put in evaluation mode"
    advice = (
        "call .eval() in the factory, if dropout or batch statistics are not part of the defence"
    )
    return [Finding(check="training-mode", severity=Severity.INFO, message=message, advice=advice)]
