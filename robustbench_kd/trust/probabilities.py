"""The outputs are probabilities, not logits."""

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import Probe

_SLACK = 1e-5  # AutoAttack, `checks.py`


def probe(sample: Probe) -> list[Finding]:
    """Returns a yellow finding if all outputs lie in [0, 1] and sum to 1.

    Log-probabilities count as logits.
    """
    outputs = sample.logits.double()
    in_range = bool(((outputs >= -_SLACK) & (outputs <= 1 + _SLACK)).all())
    deviation = float((outputs.sum(dim=1) - 1).abs().max())
    if not in_range or deviation > _SLACK:
        return []
    return [
        Finding(
            check="probabilities",
            severity=Severity.YELLOW,
            message=f"the outputs of all {len(sample)} images lie in [0, 1] and sum to 1",
            advice="return logits: a second softmax flattens the loss and hides gradients",
            value=deviation,
            threshold=_SLACK,
        )
    ]
