"""Finds the state dict in the content of a file, and loads it strictly.

Every key and every shape has to fit, and every step on the way is noted for the user.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_kd.checkpoints._text import listed, one_line
from robustbench_kd.checkpoints.card import Normalisation
from robustbench_kd.checkpoints.mismatch import classes_of_head, mismatch
from robustbench_kd.checkpoints.names import averaged_beside, fit_names, fits
from robustbench_kd.checkpoints.precision import check_types
from robustbench_kd.checkpoints.statistics import State
from robustbench_kd.checkpoints.weights import WHOLE_MODULE, Inert
from robustbench_kd.core.errors import CheckpointError, reason, unknown_name

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "swa_model", "swa_state_dict")
_USUAL = frozenset({*_WRAPPERS, *_AVERAGED})
_EXTRA = "_extra_state"  # what a module keeps beside its tensors
_MOST_REPEATED = 2**27  # bytes of a tensor that repeats what its file holds once
_DEEPEST = 16  # a hostile file can hold a list that holds itself


@dataclass(frozen=True)
class Found:
    """A state dict, the name of the file that holds it, and notes about the way to it.

    `extra` are plain values that modules keep beside their tensors.
    """

    state: State
    source: str
    notes: tuple[str, ...]
    extra: Mapping[str, object] = field(default_factory=dict)


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
    endless = next((name for name, value in state.items() if _is_endless(value)), None)
    if endless is not None:
        raise CheckpointError(
            f"'{source}': '{one_line(endless)}' repeats a few numbers to "
            f"{state[endless].numel():,}: save it by .clone()"
        )
    extra = {name: value for name, value in content.items() if _is_extra(name, value)}
    left = len(content) - len(state) - len(extra)
    if left:
        notes.append(f"left out {left} entries that are no tensors")
    if path:
        notes.insert(0, f"weights found under '{'.'.join(path)}'")
    return Found(state, source, tuple(notes), extra)


def load_state(
    network: nn.Module, found: Found, *, hint: str = ""
) -> tuple[Normalisation | None, list[str]]:
    """Loads a state dict strictly; returns a normalisation from the file, and what was done.

    Raises `CheckpointError` with the first missing and unexpected keys, the first shapes that
    differ, and the likely cause.
    """
    every = network.state_dict()
    expected = _tensors(every)
    try:
        state, normalisation, notes = fit_names(found.state, expected)
    except CheckpointError as error:
        raise CheckpointError(f"'{found.source}': {error}") from error

    problem = mismatch(state, expected)
    if problem:
        raise CheckpointError(f"'{found.source}' does not fit the architecture: {problem}{hint}")
    notes += check_types(state, expected, source=found.source)
    extra = _extra_states(found.extra, every.keys() - expected.keys())
    try:
        network.load_state_dict({**state, **extra}, strict=True)
    except Exception as error:  # hooks of a person's own modules can raise anything
        raise CheckpointError(
            f"'{found.source}' does not fit the architecture: {one_line(reason(error))}"
        ) from error
    return normalisation, [*found.notes, *notes]


def classes_in(found: Found, network: nn.Module) -> int:
    """Returns for how many classes weights are that fit a network but for this number, else 0."""
    expected = _tensors(network.state_dict())
    try:
        state, _, _ = fit_names(found.state, expected)
    except CheckpointError:
        return 0
    return classes_of_head(state, expected)


def fit(state: State, expected: State) -> float:
    """Returns the fraction of expected tensors that the state has by name and shape."""
    try:
        renamed, _, _ = fit_names(state, expected)
    except CheckpointError:  # several networks of the file fit
        return 1.0
    fitting = 0
    for name, value in expected.items():
        if name in renamed and fits(renamed[name], value):
            fitting += 1
    return fitting / max(len(expected), len(state), 1)


def _is_extra(name: object, value: object) -> bool:
    is_named = isinstance(name, str) and name.endswith(_EXTRA)
    return is_named and not isinstance(value, Tensor) and _holds_plain_values(value)


def _holds_plain_values(value: object) -> bool:
    """Tells numbers, texts, tensors and containers of them from what a file left inert."""
    level = [value]
    seen: set[int] = set()  # a hostile file can hold a container many times, or within itself
    for _ in range(_DEEPEST):
        inner: list[object] = []
        for part in level:
            if isinstance(part, Mapping | list | tuple | set):
                if id(part) not in seen:
                    inner += [*part, *part.values()] if isinstance(part, Mapping) else part
                seen.add(id(part))
            elif not (part is None or isinstance(part, str | bytes | int | float | Tensor)):
                return False
        level = inner
    return not level


def _extra_states(extra: Mapping[str, object], names: Iterable[str]) -> dict[str, object]:
    """Returns the values that modules keep beside their tensors, by the names they expect."""
    found = {}
    for name in names:
        fitting = [value for other, value in extra.items() if f".{other}".endswith(f".{name}")]
        if len(fitting) == 1:
            found[name] = fitting[0]
    return found


# The way to the state dict.


def _descend(content: Any, key: str) -> tuple[Any, list[str], list[str]]:
    """Follows a key and then the usual wrappers; returns the state dict, its path, and notes."""
    path: list[str] = []
    notes: list[str] = []
    if key:
        for part in key.split("."):
            wrapper = "" if path else _wrapper_above(content, part)
            if wrapper:
                content = _entered(content, wrapper)
                path.append(wrapper)
            content = _entered(content, part)
            path.append(part)

    while not _is_state(content):
        if _holds_parts(content):
            return _joined(content), path, [*notes, f"joined the parts {listed(content)}"]
        part, remarks = _next_part(content, path)
        content = _entered(content, part)
        path.append(part)
        notes += remarks
    return content, path, notes


def _wrapper_above(content: Any, part: str) -> str:
    """Returns the usual key under which a part lies that a user named without it."""
    if not isinstance(content, Mapping) or part in content:
        return ""
    for name in _present(content, _WRAPPERS, Mapping):
        inner = content[name]
        if part in inner or any(str(key).startswith(f"{part}.") for key in inner):
            return name
    return ""


def _is_state(content: Any) -> bool:
    """Tells a state dict from a dict that holds one.

    The latter may hold a tensor of its own, such as its best accuracy.
    """
    if not _tensors(content):
        return False
    for name, value in content.items():
        wraps = name in _USUAL and isinstance(value, Mapping)
        if wraps or _tensors(value):
            return False
    return True


def _holds_parts(content: Any) -> bool:
    """Tells a dict of the state dicts of several parts, `encoder` and `classifier`.

    The usual wrappers are not among them, nor what an optimizer keeps.
    """
    if not isinstance(content, Mapping) or any(name in content for name in _USUAL):
        return False
    parts = [value for value in content.values() if isinstance(value, Mapping) and value]
    return len(parts) > 1 and all(len(_tensors(part)) == len(part) for part in parts)


def _joined(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns the state dicts of several parts as one."""
    found: dict[str, Any] = {}
    for part, state in content.items():
        if isinstance(state, Mapping):
            found |= {f"{part}.{name}": value for name, value in state.items()}
    return found


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
    if all(type(value).__name__.startswith("numpy.") for value in content.values()):
        raise CheckpointError(
            f"the file holds numpy arrays{where} ({listed(content)}), which are not read: where it "
            "was made, save {name: torch.from_numpy(array) for name, array in state.items()}"
        )
    plain = _present(content, _WRAPPERS, Mapping | list | tuple | Inert)
    averaged = _present(content, _AVERAGED, Mapping)
    if plain:
        return plain[0], [averaged_beside(name) for name in averaged]
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
        under = {
            name.removeprefix(f"{part}."): value
            for name, value in _tensors(content).items()
            if name.startswith(f"{part}.")
        }
        if under:
            return under
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


def _is_endless(value: Tensor) -> bool:
    """Tells a tensor that repeats few numbers so often that a copy of it would fill the memory."""
    held = value.untyped_storage().nbytes()
    return value.numel() * value.element_size() > max(_MOST_REPEATED, held)


def _is_plain(value: Tensor) -> bool:
    unusual = value.is_quantized or value.is_meta or value.is_complex()
    return value.layout is torch.strided and not unusual
