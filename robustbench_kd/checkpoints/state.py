"""Finds the state dict in what a file holds, and loads it strictly.

Every key, every shape, every step said.
"""

from collections.abc import Iterable, Mapping, Sequence
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
    state = _named_tensors(content)
    odd = [name for name, value in state.items() if not _is_plain(value)]
    if odd:
        raise CheckpointError(
            f"'{source}': expected plain tensors, the file holds sparse, quantised, complex or "
            f"empty ones ({listed(odd)}): save the state dict of an ordinary network"
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
    """Returns the fraction of expected tensors that the state has by name and shape, in [0, 1]."""
    renamed, _, _ = _fit_names(state, expected)
    same = 0
    for name, value in expected.items():
        if name in renamed and renamed[name].shape == value.shape:
            same += 1
    return same / max(len(expected), len(renamed), 1)


def _is_state(content: Any) -> bool:
    """Tells a state dict from a dict that holds one, even if it also has a tensor of its own."""
    if not _named_tensors(content):
        return False
    for name, value in content.items():
        if _named_tensors(value):
            return False
        if name in (*_WRAPPERS, *_AVERAGED) and isinstance(value, Mapping):
            return False
    return True


def _named_tensors(content: Any) -> dict[str, Tensor]:
    """Returns the tensors of a dict that have a name, nothing for other content."""
    found: dict[str, Tensor] = {}
    if isinstance(content, Mapping):
        for name, value in content.items():
            if isinstance(name, str) and isinstance(value, Tensor):
                found[name] = value
    return found


def _next_part(content: Any, path: list[str]) -> tuple[str, list[str]]:
    where = ""
    if path:
        where = f" under '{'.'.join(path)}'"
    if len(path) == _DEEPEST:
        raise CheckpointError(
            f"expected a state dict, the file nests more than {_DEEPEST} deep: save it alone"
        )
    if isinstance(content, list | tuple) and content:
        return _only_element(content, path, where), []
    if isinstance(content, Inert | nn.Module):
        raise CheckpointError(f"the file {WHOLE_MODULE}")
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"expected a state dict, the file holds {_kind(content)}{where}: choose one with "
            "--weights-key"
        )
    found = _wrapped(content)
    if found is None:
        raise CheckpointError(
            f"expected a state dict, the file holds {listed(content)}{where}: choose one with "
            "--weights-key"
        )
    return found


def _only_element(content: Sequence[Any], path: list[str], where: str) -> str:
    if len(content) > 1:
        first = ".".join([*path, "0"])
        raise CheckpointError(
            f"the file holds a list of {len(content)}{where}: choose with --weights-key {first}"
        )
    return "0"


def _wrapped(content: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Returns the name under which weights usually lie, and notes about averaged ones."""
    averaged = [name for name in _AVERAGED if isinstance(content.get(name), Mapping)]
    for name in _WRAPPERS:
        if isinstance(content.get(name), Mapping | list | tuple | Inert):
            return name, list(map(_also, averaged))
    if averaged:
        return averaged[0], ["these are averaged weights"]
    return None


def _also(name: str) -> str:
    return f"the file also holds averaged weights: --weights-key {name} takes them"


def _kind(content: Any) -> str:
    kind = type(content).__name__
    if isinstance(content, Mapping | list | tuple) and not content:
        return f"an empty {kind}"
    return kind


def _step(content: Any, part: str) -> Any:
    if isinstance(content, Mapping):
        if part in content:
            return content[part]
        inside = []
        for name, value in content.items():
            if not isinstance(value, Tensor):
                inside.append(one_line(name))
        if inside:
            raise CheckpointError(str(unknown_name("weights key", part, inside)))
        raise CheckpointError(f"weights key '{part}' leads into a state dict: leave that part out")
    if isinstance(content, list | tuple) and part.isdecimal() and int(part) < len(content):
        return content[int(part)]
    kind = type(content).__name__
    if isinstance(content, list | tuple):
        kind = f"a list of {len(content)}"
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
        if last not in _STATISTICS or mean.numel() > 4 or _within(name, expected):
            continue
        partner = f"{stem}{dot}{_STATISTICS[last]}"
        if partner not in state:
            continue
        try:
            normalisation = Normalisation(mean=_numbers(mean), std=_numbers(state[partner]))
        except ValueError:  # no statistics: they stay, and are unexpected
            continue
        rest = {other: state[other] for other in state if other not in {name, partner}}
        return rest, normalisation
    return state, None


def _within(name: str, expected: State) -> bool:
    """Tells whether the network itself has this tensor, possibly under another prefix."""
    for other in expected:
        if f".{name}".endswith(f".{other}") or f".{other}".endswith(f".{name}"):
            return True
    return False


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.double().flatten().tolist())


def _is_plain(value: Tensor) -> bool:
    return value.layout is torch.strided and not (
        value.is_quantized or value.is_meta or value.is_complex()
    )


def _mismatch(state: State, expected: State) -> str:
    missing, differing, shapes = [], [], []
    for name, value in expected.items():
        # The counter of batch normalisation is younger than many files; torch fills it in.
        if name not in state and not name.endswith("num_batches_tracked"):
            missing.append(name)
        if name in state and state[name].shape != value.shape:
            differing.append(name)
            found = tuple(state[name].shape)
            shapes.append(f"{name}: file {found}, model {tuple(value.shape)}")

    unexpected = [name for name in state if name not in expected]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({listed(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({listed(unexpected)})")
    if differing:
        parts.append(f"{len(differing)} of another shape ({listed(shapes)})")
    if not parts:
        return ""
    return ", ".join(parts) + _cause(state, expected, missing or unexpected, differing)


def _cause(state: State, expected: State, names: list[str], differing: list[str]) -> str:
    if names or not differing:
        return "; likely another architecture or other arguments"
    first, last = next(iter(expected)), differing[-1]
    if set(differing) <= set(list(expected)[-2:]):
        found = state[last].shape[0]
        return f"; likely another number of classes: the file has {found}, so choose its --dataset"
    if differing == [first] and state[first].ndim == 4:
        found = state[first].shape[1]
        return f"; likely another number of channels: the file has {found}, so choose its --dataset"
    return "; likely another width, depth or image size: see --arch-arg"
