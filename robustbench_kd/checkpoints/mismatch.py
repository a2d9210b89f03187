"""Says why a state dict does not fit a network."""

from robustbench_kd.checkpoints._text import listed
from robustbench_kd.checkpoints.names import fits, required
from robustbench_kd.checkpoints.statistics import State


def mismatch(state: State, expected: State) -> str:
    """Returns what is missing, unexpected or of another shape, and nothing where all fits."""
    missing, differing = _unmet(state, expected)
    unexpected = [name for name in state if name not in expected]

    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({listed(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({listed(unexpected)})")
    if differing:
        shapes = [_two_shapes(name, state, expected) for name in differing]
        parts.append(f"{len(differing)} of another shape ({listed(shapes)})")
    if not parts:
        return ""
    return ", ".join(parts) + _cause(state, expected, missing or unexpected, differing)


def classes_of_head(state: State, expected: State) -> int:
    """Returns for how many classes a state dict is, where nothing but that does not fit.

    It returns 0 where all fits, or where something else does not.
    """
    missing, differing = _unmet(state, expected)
    if missing or not differing or not _is_head(differing, expected):
        return 0
    tails = {(state[name].shape[1:], expected[name].shape[1:]) for name in differing}
    counts = {state[name].shape[0] for name in differing if state[name].ndim}
    if len(counts) > 1 or any(found != wanted for found, wanted in tails):
        return 0
    return counts.pop()


def _is_head(differing: list[str], expected: State) -> bool:
    """Tells whether only the last layer has another shape."""
    return set(differing) <= set(list(expected)[-2:])


def _unmet(state: State, expected: State) -> tuple[list[str], list[str]]:
    """Returns which expected tensors are missing, and which have another shape."""
    missing: list[str] = []
    differing: list[str] = []
    needed = set(required(expected))
    for name, value in expected.items():
        if name in state:
            if not fits(state[name], value):
                differing.append(name)
        elif name in needed:
            missing.append(name)
    return missing, differing


def _two_shapes(name: str, state: State, expected: State) -> str:
    return f"{name}: file {tuple(state[name].shape)}, model {tuple(expected[name].shape)}"


def _cause(state: State, expected: State, names: list[str], differing: list[str]) -> str:
    """Returns the likely cause of a mismatch; `names` are keys that only one side has."""
    if names or not differing:
        return "; likely another architecture or other arguments"
    first = next(iter(expected))
    if _is_head(differing, expected):
        classes = state[differing[-1]].shape[0]
        return (
            f"; likely another number of classes: the file has {classes}, so choose its --dataset, "
            f"or give --arch-arg classes={classes} where the data has a part of them"
        )
    if differing == [first] and state[first].ndim == 4:
        channels = state[first].shape[1]
        return (
            f"; likely another number of channels: the file has {channels}, so choose its --dataset"
        )
    return "; likely another width, depth or image size: see --arch-arg"
