"""Compares the number types of a file's tensors with those of a network."""

from robustbench_kd.checkpoints._text import listed
from robustbench_kd.checkpoints.statistics import State
from robustbench_kd.core.errors import CheckpointError


def check_types(state: State, expected: State, *, source: str) -> list[str]:
    """Returns a note where the file stores fewer bits than the network computes with.

    Raises `CheckpointError` for integers in place of floats: their scale is kept elsewhere, so the
    network would load and compute something else.
    """
    floats = [name for name in state if name in expected and expected[name].is_floating_point()]
    integers = [name for name in floats if not state[name].is_floating_point()]
    if integers:
        kind = str(state[integers[0]].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"'{source}': expected floating-point weights, the file holds {kind} in "
            f"{len(integers)} of them ({listed(integers)}): multiply them by their scales "
            "and save the float weights"
        )

    lower = [name for name in floats if state[name].itemsize < expected[name].itemsize]
    if not lower:
        return []
    kinds = sorted({str(state[name].dtype).removeprefix("torch.") for name in lower})
    return [f"{len(lower)} tensors are stored in lower precision ({listed(kinds)})"]
