"""Finds the state dict in the content of a file, and loads it strictly.

Every key and every shape has to fit, and every step on the way is noted for the user.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_kd.checkpoints._text import listed, one_line
from robustbench_kd.checkpoints.card import Normalisation
from robustbench_kd.checkpoints.precision import check_types
from robustbench_kd.checkpoints.weights import WHOLE_MODULE, Inert
from robustbench_kd.core.errors import CheckpointError, unknown_name

State = Mapping[str, Tensor]
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "swa_model", "swa_state_dict")
_STATISTICS = {"mean": "std", "mu": "sigma"}
_DEEPEST = 16  # a hostile file can hold a list that holds itself


@dataclass(frozen=True)
class Found:
    """A state dict, the name of the file that holds it, and notes about the way to it."""

    state: State
    source: str
    notes: tuple[str, ...]


def find_state(content: Any, key: str = "", *, source: str) -> Found:
    """Returns the state dict inside nested dicts and one-element lists.

    `key` is a dotted path that the user chose. Averaged weights (EMA, SWA) are taken only by `key`,
    or where there are no others; a note says so either way. Raises `CheckpointError` that names the
    `source` and what it holds instead.
    """
    try:
        content, path, notes = _descend(content, key)
    except CheckpointError as error:
        raise CheckpointError(f"'{source}': {error}") from error

    state = _tensors(content)
    unusable = [name for name, value in state.items() if not _is_plain(value)]
    if unusable:
        raise CheckpointError(
            f"'{source}': expected plain tensors, the file holds sparse, quantised, complex or "
            f"empty ones ({listed(unusable)}): save the state dict of an ordinary network"
        )
    if len(state) < len(content):
        notes.append(f"left out {len(content) - len(state)} entries that are no tensors")
    if path:
        notes.insert(0, f"weights found under '{'.'.join(path)}'")
    return Found(state, source, tuple(notes))


def load_state(
    network: nn.Module, found: Found, *, hint: str = ""
) -> tuple[Normalisation | None, list[str]]:
    """Loads a state dict strictly; returns a normalisation from the file, and what was done.

    Raises `CheckpointError` with the first missing and unexpected keys, the first shapes that
    differ, and the likely cause.
    """
    expected = network.state_dict()
    state, normalisation, notes = _fit_names(found.state, expected)
    problem = _mismatch(state, expected)
    if problem:
        raise CheckpointError(f"'{found.source}' does not fit the architecture: {problem}{hint}")
    notes += check_types(state, expected, source=found.source)
    network.load_state_dict(dict(state), strict=True)
    return normalisation, [*found.notes, *notes]


def fit(state: State, expected: State) -> float:
    """Returns the fraction of expected tensors that the state has by name and shape."""
    renamed, _, _ = _fit_names(state, expected)
    fitting = 0
    for name, value in expected.items():
        if name in renamed and renamed[name].shape == value.shape:
            fitting += 1
    return fitting / max(len(expected), len(renamed), 1)


# The way to the state dict.


def _descend(content: Any, key: str) -> tuple[Any, list[str], list[str]]:
    """Follows a key and then the usual wrappers; returns the state dict, its path, and notes."""
    path: list[str] = []
    notes: list[str] = []
    if key:
        for part in key.split("."):
            content = _entered(content, part)
            path.append(part)

    while not _is_state(content):
        part, remarks = _next_part(content, path)
        content = _entered(content, part)
        path.append(part)
        notes += remarks
    return content, path, notes


def _is_state(content: Any) -> bool:
    """Tells a state dict from a dict that holds one.

    The latter may hold a tensor of its own, such as its best accuracy.
    """
    if not _tensors(content):
        return False
    for name, value in content.items():
        wraps = name in (*_WRAPPERS, *_AVERAGED) and isinstance(value, Mapping)
        if wraps or _tensors(value):
            return False
    return True


def _tensors(content: Any) -> dict[str, Tensor]:
    """Returns the tensors that a mapping holds by name; anything else holds none."""
    if not isinstance(content, Mapping):
        return {}
    return {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _next_part(content: Any, path: list[str]) -> tuple[str, list[str]]:
    """Returns the key that leads closer to the state dict, and notes about the choice."""
    where = f" under '{'.'.join(path)}'" if path else ""
    if len(path) == _DEEPEST:
        raise CheckpointError(
            f"expected a state dict, the file nests more than {_DEEPEST} deep: save it alone"
        )
    if isinstance(content, list | tuple) and content:
        if len(content) == 1:
            return "0", []
        first = ".".join([*path, "0"])
        raise CheckpointError(
            f"the file holds a list of {len(content)}{where}: choose with --weights-key {first}"
        )
    if isinstance(content, Inert | nn.Module):
        raise CheckpointError(f"the file {WHOLE_MODULE}")
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"expected a state dict, the file holds {_kind(content)}{where}: "
            "choose one with --weights-key"
        )
    return _wrapper(content, where)


def _wrapper(content: Mapping[Any, Any], where: str) -> tuple[str, list[str]]:
    """Returns the first of the usual keys; averaged weights only where there are no others."""
    plain = _present(content, _WRAPPERS, Mapping | list | tuple | Inert)
    averaged = _present(content, _AVERAGED, Mapping)
    if plain:
        also = "the file also holds averaged weights: --weights-key {} takes them"
        return plain[0], [also.format(name) for name in averaged]
    if averaged:
        return averaged[0], ["these are averaged weights"]
    raise CheckpointError(
        f"expected a state dict, the file holds {listed(content)}{where}: "
        "choose one with --weights-key"
    )


def _present(
    content: Mapping[Any, Any], names: Iterable[str], kinds: type | UnionType
) -> list[str]:
    return [name for name in names if isinstance(content.get(name), kinds)]


def _entered(content: Any, part: str) -> Any:
    """Returns what lies under one part of a key."""
    if isinstance(content, Mapping):
        if part in content:
            return content[part]
        inner = [one_line(name) for name in content if not isinstance(content[name], Tensor)]
        if inner:
            raise CheckpointError(str(unknown_name("weights key", part, inner)))
        raise CheckpointError(f"weights key '{part}' leads into a state dict: leave that part out")

    if not isinstance(content, list | tuple):
        kind = type(content).__name__
    elif part.isdecimal() and int(part) < len(content):
        return content[int(part)]
    else:
        kind = f"a list of {len(content)}"
    raise CheckpointError(f"weights key '{part}' leads nowhere: there is {kind}")


def _kind(content: Any) -> str:
    name = type(content).__name__
    if isinstance(content, Mapping | list | tuple) and not content:
        return f"an empty {name}"
    return name


# The names of the network.


def _fit_names(state: State, expected: State) -> tuple[State, Normalisation | None, list[str]]:
    """Returns the state under the names that a network expects, and notes about each change."""
    notes: list[str] = []
    if "n_averaged" in state and "n_averaged" not in expected:
        state = _without(state, "n_averaged")
        notes.append("dropped the counter of averaged models")

    state, normalisation = _take_normalisation(state, expected)
    if normalisation:
        notes.append(f"took the normalisation {normalisation} from the file")

    old = _shared_prefix(state)
    new = _shared_prefix(expected)
    if old != new:
        state = {new + name.removeprefix(old): value for name, value in state.items()}
        notes.append(_renamed(one_line(old), one_line(new)))
    return state, normalisation, notes


def _without(state: State, *names: str) -> State:
    return {name: value for name, value in state.items() if name not in names}


def _shared_prefix(names: Iterable[str]) -> str:
    """Returns the modules that all names lie in, `module.model.`, or nothing."""
    modules = [name.split(".")[:-1] for name in names]
    prefix = ""
    for level in zip(*modules, strict=False):
        if len(set(level)) > 1:
            break
        prefix += f"{level[0]}."
    return prefix


def _renamed(old: str, new: str) -> str:
    if old.endswith(new):
        return f"stripped the prefix '{old.removesuffix(new)}'"
    if new.endswith(old):
        return f"added the prefix '{new.removesuffix(old)}'"
    return f"replaced the prefix '{old}' by '{new}'"


def _take_normalisation(state: State, expected: State) -> tuple[State, Normalisation | None]:
    """Returns the state without the first mean and deviation that a network lacks, and these."""
    for name, mean in state.items():
        partner = _deviation_of(name)
        if partner is None or partner not in state:
            continue
        if mean.numel() > 4 or _within(name, expected):
            continue
        try:
            normalisation = Normalisation(mean=_numbers(mean), std=_numbers(state[partner]))
        except ValueError:  # not statistics: they stay, and are reported as unexpected
            continue
        return _without(state, name, partner), normalisation
    return state, None


def _deviation_of(name: str) -> str | None:
    """Returns the name of the deviation that belongs to a mean; None for any other tensor."""
    stem, dot, last = name.rpartition(".")
    if last not in _STATISTICS:
        return None
    return f"{stem}{dot}{_STATISTICS[last]}"


def _within(name: str, expected: State) -> bool:
    """Tells whether the network itself has this tensor, possibly under another prefix."""
    for other in expected:
        if f".{name}".endswith(f".{other}") or f".{other}".endswith(f".{name}"):
            return True
    return False


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.double().flatten().tolist())


def _is_plain(value: Tensor) -> bool:
    unusual = value.is_quantized or value.is_meta or value.is_complex()
    return value.layout is torch.strided and not unusual


# Why a state does not fit.


def _mismatch(state: State, expected: State) -> str:
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


def _unmet(state: State, expected: State) -> tuple[list[str], list[str]]:
    """Returns which expected tensors are missing, and which have another shape."""
    missing: list[str] = []
    differing: list[str] = []
    for name, value in expected.items():
        if name in state:
            if state[name].shape != value.shape:
                differing.append(name)
        # Batch norm's counter was added to torch later than many published files; torch fills it in
        # by itself.
        elif not name.endswith("num_batches_tracked"):
            missing.append(name)
    return missing, differing


def _two_shapes(name: str, state: State, expected: State) -> str:
    return f"{name}: file {tuple(state[name].shape)}, model {tuple(expected[name].shape)}"


def _cause(state: State, expected: State, names: list[str], differing: list[str]) -> str:
    """Returns the likely cause of a mismatch; `names` are keys that only one side has."""
    if names or not differing:
        return "; likely another architecture or other arguments"
    first = next(iter(expected))
    if set(differing) <= set(list(expected)[-2:]):
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
