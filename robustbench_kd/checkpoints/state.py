"""Finds the state dict in what a file holds, and loads it strictly: every key, every shape, every step said."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_kd.checkpoints._text import listed, one_line
from robustbench_kd.checkpoints.card import Normalisation
from robustbench_kd.checkpoints.weights import WHOLE_MODULE, Inert
from robustbench_kd.core.errors import CheckpointError, unknown_name

State = Mapping[str, Tensor]
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "swa_model", "swa_state_dict")
_STATISTICS = {"mean": "std", "mu": "sigma"}
_DEEPEST = 16  # a hostile file can hold a list that holds itself


@dataclass(frozen=True)
class Found:
    """A state dict, the name of the file it lies in, and what was said on the way to it."""

    state: State
    source: str
    notes: tuple[str, ...]


def find_state(content: Any, key: str = "", *, source: str) -> Found:
    """Returns the state dict inside nested dicts and one-element lists.

    `key` is a dotted path to choose by hand. Averaged weights (EMA, SWA) are taken only by `key`,
    or where nothing else is there; either way it is said. Raises `CheckpointError` that names the
    `source` and what it holds instead.
    """
    path: list[str] = []
    notes: list[str] = []
    try:
        for part in key.split(".") if key else ():
            content = _step(content, part)
            path.append(part)
        while not _is_state(content):
            part, remarks = _next_part(content, path)
            notes += remarks
            content = _step(content, part)
            path.append(part)
    except CheckpointError as error:
        raise CheckpointError(f"'{source}': {error}") from error
    state = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    odd = [name for name, value in state.items() if not _is_plain(value)]
    if odd:
        raise CheckpointError(
            f"'{source}': expected plain tensors, the file holds sparse, quantised, complex or empty ones "
            f"({listed(odd)}): save the state dict of an ordinary network"
        )
    if len(state) < len(content):
        notes.append(f"left out {len(content) - len(state)} entries that are no tensors")
    if path:
        notes.insert(0, f"weights found under '{'.'.join(path)}'")
    return Found(state, source, tuple(notes))


def load_state(
    network: nn.Module, found: Found, *, hint: str = ""
) -> tuple[Normalisation | None, list[str]]:
    """Loads a state dict strictly; returns a normalisation that it carried, and what was done.

    Raises `CheckpointError` with the first missing and unexpected keys, the first shapes that
    differ, and the likely cause.
    """
    expected = network.state_dict()
    state, normalisation, notes = _fit_names(found.state, expected)
    problem = _mismatch(state, expected)
    if problem:
        raise CheckpointError(f"'{found.source}' does not fit the architecture: {problem}{hint}")
    network.load_state_dict(dict(state), strict=True)
    return normalisation, [*found.notes, *notes]


def fit(state: State, expected: State) -> float:
    """Returns the share of expected tensors that the state has by name and shape, in [0, 1]."""
    renamed, _, _ = _fit_names(state, expected)
    same = sum(
        name in renamed and renamed[name].shape == value.shape for name, value in expected.items()
    )
    return same / max(len(expected), len(renamed), 1)


def _is_state(content: Any) -> bool:
    """Tells a state dict from a dict that holds one, even if that has a tensor of its own, such as its best accuracy."""
    return _has_tensors(content) and not any(
        _has_tensors(value) or (name in (*_WRAPPERS, *_AVERAGED) and isinstance(value, Mapping))
        for name, value in content.items()
    )


def _has_tensors(content: Any) -> bool:
    return isinstance(content, Mapping) and any(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def _next_part(content: Any, path: list[str]) -> tuple[str, list[str]]:
    where = f" under '{'.'.join(path)}'" if path else ""
    if len(path) == _DEEPEST:
        raise CheckpointError(
            f"expected a state dict, the file nests more than {_DEEPEST} deep: save it alone"
        )
    if isinstance(content, list | tuple) and len(content) == 1:
        return "0", []
    if isinstance(content, list | tuple) and content:
        first = ".".join([*path, "0"])
        raise CheckpointError(
            f"the file holds a list of {len(content)}{where}: choose with --weights-key {first}"
        )
    if isinstance(content, Inert | nn.Module):
        raise CheckpointError(f"the file {WHOLE_MODULE}")
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"expected a state dict, the file holds {_kind(content)}{where}: choose one with --weights-key"
        )
    plain = [
        name for name in _WRAPPERS if isinstance(content.get(name), Mapping | list | tuple | Inert)
    ]
    averaged = [name for name in _AVERAGED if isinstance(content.get(name), Mapping)]
    if plain:
        also = [
            f"the file also holds averaged weights: --weights-key {name} takes them"
            for name in averaged
        ]
        return plain[0], also
    if averaged:
        return averaged[0], ["these are averaged weights"]
    raise CheckpointError(
        f"expected a state dict, the file holds {listed(content)}{where}: choose one with --weights-key"
    )


def _kind(content: Any) -> str:
    sized = isinstance(content, Mapping | list | tuple)
    return f"an empty {type(content).__name__}" if sized and not content else type(content).__name__


def _step(content: Any, part: str) -> Any:
    if isinstance(content, Mapping):
        if part in content:
            return content[part]
        inside = [
            one_line(name) for name, value in content.items() if not isinstance(value, Tensor)
        ]
        if inside:
            raise CheckpointError(str(unknown_name("weights key", part, inside)))
        raise CheckpointError(f"weights key '{part}' leads into a state dict: leave that part out")
    if isinstance(content, list | tuple) and part.isdecimal() and int(part) < len(content):
        return content[int(part)]
    kind = (
        f"a list of {len(content)}" if isinstance(content, list | tuple) else type(content).__name__
    )
    raise CheckpointError(f"weights key '{part}' leads nowhere: there is {kind}")


def _fit_names(state: State, expected: State) -> tuple[State, Normalisation | None, list[str]]:
    notes: list[str] = []
    if "n_averaged" in state and "n_averaged" not in expected:
        state = {name: value for name, value in state.items() if name != "n_averaged"}
        notes.append("dropped the counter of averaged models")
    state, normalisation = _take_normalisation(state, expected)
    if normalisation:
        notes.append(f"took the normalisation {normalisation} from the file")
    old, new = _shared_prefix(state), _shared_prefix(expected)
    if old != new:
        state = {new + name.removeprefix(old): value for name, value in state.items()}
        notes.append(_renamed(one_line(old), one_line(new)))
    return state, normalisation, notes


def _shared_prefix(names: Iterable[str]) -> str:
    """Returns the modules that all names lie in, `module.model.`, or nothing."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = takewhile(lambda modules: len(set(modules)) == 1, levels)
    return "".join(f"{modules[0]}." for modules in shared)


def _renamed(old: str, new: str) -> str:
    if old.endswith(new):
        return f"stripped the prefix '{old.removesuffix(new)}'"
    if new.endswith(old):
        return f"added the prefix '{new.removesuffix(old)}'"
    return f"replaced the prefix '{old}' by '{new}'"


def _take_normalisation(state: State, expected: State) -> tuple[State, Normalisation | None]:
    for name, mean in state.items():
        stem, dot, last = name.rpartition(".")
        partner = f"{stem}{dot}{_STATISTICS[last]}" if last in _STATISTICS else name
        if partner == name or partner not in state or mean.numel() > 4 or _within(name, expected):
            continue
        try:
            normalisation = Normalisation(mean=_numbers(mean), std=_numbers(state[partner]))
        except ValueError:  # no statistics: they stay, and are unexpected
            continue
        return {
            other: value for other, value in state.items() if other not in {name, partner}
        }, normalisation
    return state, None


def _within(name: str, expected: State) -> bool:
    """Tells whether the network itself has this tensor, possibly under another prefix."""
    return any(
        f".{name}".endswith(f".{other}") or f".{other}".endswith(f".{name}") for other in expected
    )


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.double().flatten().tolist())


def _is_plain(value: Tensor) -> bool:
    return value.layout is torch.strided and not (
        value.is_quantized or value.is_meta or value.is_complex()
    )


def _mismatch(state: State, expected: State) -> str:
    # Batch norm's counter was added to torch later than many published files; torch fills it in by
    # itself.
    missing = [
        name for name in expected if name not in state and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in state if name not in expected]
    differing = [
        name for name in expected if name in state and state[name].shape != expected[name].shape
    ]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({listed(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({listed(unexpected)})")
    if differing:
        shapes = (
            f"{name}: file {tuple(state[name].shape)}, model {tuple(expected[name].shape)}"
            for name in differing
        )
        parts.append(f"{len(differing)} of another shape ({listed(shapes)})")
    if not parts:
        return ""
    return ", ".join(parts) + _cause(state, expected, missing or unexpected, differing)


def _cause(state: State, expected: State, names: list[str], differing: list[str]) -> str:
    if names or not differing:
        return "; likely another architecture or other arguments"
    first, last = next(iter(expected)), differing[-1]
    if set(differing) <= set(list(expected)[-2:]):
        return f"; likely another number of classes: the file has {state[last].shape[0]}, so choose its --dataset"
    if differing == [first] and state[first].ndim == 4:
        return f"; likely another number of channels: the file has {state[first].shape[1]}, so choose its --dataset"
    return "; likely another width, depth or image size: see --arch-arg"
