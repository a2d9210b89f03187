"""The outputs are probabilities, not logits."""

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import Probe

_SLACK = 1e-5  # AutoAttack, `checks.py`


def probe(sample: Probe) -> list[Finding]:
    """Returns a yellow finding where all outputs lie in [0, 1] and sum to 1; log-probabilities are logits."""
    output = sample.logits.double()
    in_range = bool(((output >= -_SLACK) & (output <= 1 + _SLACK)).all())
    off = float((output.sum(dim=1) - 1).abs().max())
    if not in_range or off > _SLACK:
        return []
    return [
        Finding(
            check="probabilities",
            severity=Severity.YELLOW,
            message=f"the outputs of all {len(sample)} images lie in [0, 1] and sum to 1",
            advice="return logits: a second softmax flattens the loss and hides gradients",
            value=off,
            threshold=_SLACK,
        )
    ]
