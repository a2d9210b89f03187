"""Finds the state dict in what a file holds, and loads it strictly: every key, every shape, every step said."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustbench_kd.checkpoints.card import Normalisation
from robustbench_kd.checkpoints.weights import WHOLE_MODULE, Inert
from robustbench_kd.core.errors import CheckpointError, unknown_name

State = Mapping[str, Tensor]
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "swa_model", "swa_state_dict")
_STATISTICS = {"mean": "std", "mu": "sigma"}


@dataclass(frozen=True)
class Found:
    """A state dict, the path of keys that led to it, and what was said on the way."""

    state: State
    notes: tuple[str, ...]


def find_state(content: Any, key: str = "") -> Found:
    """Returns the state dict inside nested dicts and one-element lists; `key` is a dotted path to choose by hand.

    Averaged weights (EMA, SWA) are taken only by `key`, or where nothing else is there; either way it is said.
    """
    path: list[str] = []
    notes: list[str] = []
    for part in key.split(".") if key else ():
        content = _step(content, part)
        path.append(part)
    while not _is_state(content):
        part, remarks = _next_part(content)
        notes += remarks
        content = _step(content, part)
        path.append(part)
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if len(state) < len(content):
        notes.append(f"left out {len(content) - len(state)} entries that are no tensors")
    if path:
        notes.insert(0, f"weights found under '{'.'.join(path)}'")
    return Found(state, tuple(notes))


def load_state(
    network: nn.Module, found: Found, *, source: str, hint: str = ""
) -> tuple[Normalisation | None, list[str]]:
    """Loads a state dict strictly; returns a normalisation that it carried, and what was done.

    Raises `CheckpointError` with the first missing and unexpected keys, the first shapes that differ, and the likely cause.
    """
    expected = network.state_dict()
    state, normalisation, notes = _fit_names(found.state, expected)
    problem = _mismatch(state, expected)
    if problem:
        raise CheckpointError(f"'{source}' does not fit the architecture: {problem}{hint}")
    network.load_state_dict(dict(state), strict=True)
    return normalisation, [*found.notes, *notes]


def fit(state: State, expected: State) -> float:
    """Returns the share of expected tensors that the state has by name and shape, in [0, 1]."""
    renamed, _, _ = _fit_names(state, expected)
    same = sum(name in renamed and renamed[name].shape == value.shape for name, value in expected.items())
    return same / max(len(expected), len(renamed), 1)


def _is_state(content: Any) -> bool:
    if not isinstance(content, Mapping) or not content:
        return False
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    return tensors > 0 and not any(isinstance(content.get(name), Mapping) for name in (*_WRAPPERS, *_AVERAGED))


def _next_part(content: Any) -> tuple[str, list[str]]:
    if isinstance(content, list | tuple) and len(content) == 1:
        return "0", []
    if isinstance(content, list | tuple) and content:
        raise CheckpointError(f"the file holds a list of {len(content)} state dicts: choose one with --weights-key 0")
    if isinstance(content, Inert | nn.Module):
        raise CheckpointError(f"the file {WHOLE_MODULE}")
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"expected a state dict, the file holds {type(content).__name__}: choose one with --weights-key"
        )
    plain = [name for name in _WRAPPERS if isinstance(content.get(name), Mapping | list | tuple | Inert)]
    averaged = [name for name in _AVERAGED if isinstance(content.get(name), Mapping)]
    if plain:
        also = [f"the file also holds averaged weights: --weights-key {name} takes them" for name in averaged]
        return plain[0], also
    if averaged:
        return averaged[0], ["these are averaged weights"]
    raise CheckpointError(
        f"expected a state dict, the file holds {_listed(map(str, content))}: choose one with --weights-key"
    )


def _step(content: Any, part: str) -> Any:
    if isinstance(content, Mapping):
        if part not in content:
            raise CheckpointError(str(unknown_name("weights key", part, map(str, content))))
        return content[part]
    if isinstance(content, list | tuple) and part.isdecimal() and int(part) < len(content):
        return content[int(part)]
    raise CheckpointError(f"weights key '{part}' leads nowhere: there is {type(content).__name__}")


def _fit_names(state: State, expected: State) -> tuple[State, Normalisation | None, list[str]]:
    notes: list[str] = []
    if "n_averaged" in state and "n_averaged" not in expected:
        state = {name: value for name, value in state.items() if name != "n_averaged"}
        notes.append("dropped the counter of averaged models")
    state, normalisation = _take_normalisation(state, expected)
    if normalisation:
        notes.append(f"took the normalisation {normalisation} from the file")
    while (prefix := _shared_prefix(state)) and prefix != _shared_prefix(expected):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        notes.append(f"stripped the prefix '{prefix}'")
    if (wanted := _shared_prefix(expected)) and not _shared_prefix(state):
        state = {wanted + name: value for name, value in state.items()}
        notes.append(f"added the prefix '{wanted}'")
    return state, normalisation, notes


def _shared_prefix(names: Iterable[str]) -> str:
    heads = {name.partition(".")[0] if "." in name else "" for name in names}
    head = heads.pop() if len(heads) == 1 else ""
    return f"{head}." if head else ""


def _take_normalisation(state: State, expected: State) -> tuple[State, Normalisation | None]:
    for name, mean in state.items():
        stem, _, last = name.rpartition(".")
        partner = f"{stem}.{_STATISTICS[last]}" if stem and last in _STATISTICS else _STATISTICS.get(last, "")
        if partner in state and name not in expected and mean.numel() <= 4:
            rest = {other: value for other, value in state.items() if other not in {name, partner}}
            std = state[partner].flatten().tolist()
            return rest, Normalisation(mean=tuple(mean.flatten().tolist()), std=tuple(std))
    return state, None


def _mismatch(state: State, expected: State) -> str:
    # Batch norm's counter was added to torch later than many published files; torch fills it in by itself.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    differing = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} keys missing ({_listed(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({_listed(unexpected)})")
    if differing:
        shapes = (f"{name}: file {tuple(state[name].shape)}, model {tuple(expected[name].shape)}" for name in differing)
        parts.append(f"{len(differing)} of another shape ({_listed(shapes)})")
    if not parts:
        return ""
    return ", ".join(parts) + _cause(state, expected, missing or unexpected, differing)


def _cause(state: State, expected: State, names: list[str], differing: list[str]) -> str:
    if names or not differing:
        return "; likely another architecture or other arguments"
    first, last = next(iter(expected)), differing[-1]
    if set(differing) <= set(list(expected)[-2:]):
        return f"; likely another number of classes: the file has {state[last].shape[0]}"
    if differing == [first] and state[first].ndim == 4:
        return f"; likely another number of channels: the file has {state[first].shape[1]}"
    return "; likely another width, depth or image size: see --arch-arg"


def _listed(names: Iterable[str], most: int = 3) -> str:
    first = list(names)
    return ", ".join(first[:most]) + (", ..." if len(first) > most else "")
