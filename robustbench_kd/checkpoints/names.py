"""Brings the names of the tensors in a file to those that a network expects.

Files hold several networks, counters of profilers, pruning masks, weights that are split by weight
norm, and wrappers of wrappers. Whatever is done is noted; nothing is guessed where two networks of
a file would fit.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from robustbench_kd.checkpoints._text import listed, one_line
from robustbench_kd.checkpoints.card import Normalisation
from robustbench_kd.checkpoints.statistics import State, is_statistic, take_normalisation
from robustbench_kd.core.errors import CheckpointError

_COUNTERS = frozenset({"total_ops", "total_params", "n_averaged"})  # of thop and of averaging
_BESIDE = frozenset(
    ["criterion", "loss", "loss_fn", "loss_function", "metrics", "sub_block1"]
)  # parts beside the network; the last is in TRADES' WideResNet, which never uses it
_AVERAGED = frozenset({"ema", "ema_model", "swa", "swa_model", "averaged_model", "model_ema"})
_WRAPPERS = frozenset({"module", "_orig_mod"})
_GAIN, _DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"


def fit_names(state: State, expected: State) -> tuple[State, Normalisation | None, list[str]]:
    """Returns the state under the names that a network expects, and notes about each change.

    Raises `CheckpointError` where several networks of the file fit.
    """
    notes: list[str] = []
    for change in (_without_counters, _unpruned, _weight_norm, _own_statistics):
        state, note = change(state, expected)
        notes += note

    state, normalisation = take_normalisation(state, expected)
    if normalisation:
        notes.append(f"took the normalisation {normalisation} from the file")

    for renamed, note in ((state, []), _without_wrappers(state, expected)):
        found = _under_a_prefix(renamed, expected)
        if found:
            return found[0], normalisation, [*notes, *note, *found[1]]

    old, new = _shared_prefix(state), _shared_prefix(expected)
    if old != new:
        state = {new + name.removeprefix(old): value for name, value in state.items()}
        notes.append(_renamed(old, new))
    return state, normalisation, notes


def required(expected: State) -> Iterator[str]:
    """Yields the names that a file must hold.

    Batch norm's counter was added to torch later than many published files; torch fills it in by
    itself.
    """
    return (name for name in expected if not name.endswith("num_batches_tracked"))


def fits(value: Tensor, expected: Tensor) -> bool:
    """Returns whether a tensor has the expected shape; a lazy parameter takes any."""
    return is_lazy(expected) or value.shape == expected.shape


def averaged_beside(key: str) -> str:
    """Returns the note for averaged weights beside the ones that are taken."""
    return f"the file also holds averaged weights: --weights-key {key} takes them"


# A network under a prefix.


def _under_a_prefix(state: State, expected: State) -> tuple[State, list[str]] | None:
    """Returns the network of a file that lies under one prefix, and notes; None where none fits."""
    for new in dict.fromkeys(["", _shared_prefix(expected)]):
        olds = _covering(state, expected, new)
        if olds:
            old, notes = _chosen(olds, state)
            return _taken(state, expected, old, new, notes)
    return None


def _covering(state: State, expected: State, new: str) -> list[str]:
    """Returns the prefixes of a file under which all that a network requires lies."""
    wanted = {name.removeprefix(new): expected[name] for name in required(expected)}
    if not wanted:
        return []
    anchor = max(wanted, key=len)
    ends = [name.removesuffix(anchor) for name in state if name.endswith(anchor)]
    prefixes = [prefix for prefix in ends if not prefix or prefix.endswith(".")]

    def covers(prefix: str) -> bool:
        return all(
            prefix + name in state and fits(state[prefix + name], value)
            for name, value in wanted.items()
        )

    return [prefix for prefix in prefixes if covers(prefix)]


def _chosen(olds: list[str], state: State) -> tuple[str, list[str]]:
    """Returns the prefix to take; averaged weights only where there are no others."""
    plain = [old for old in olds if _AVERAGED.isdisjoint(old.split("."))]
    kept = plain or olds
    different = [old for old in kept[1:] if not _same(state, kept[0], old)]
    if different:
        keys = ", ".join(one_line(old.rstrip(".")) or "''" for old in (kept[0], *different))
        raise CheckpointError(
            f"the file holds {1 + len(different)} networks that fit: {keys}; "
            "choose one with --weights-key"
        )

    averaged = [one_line(old.rstrip(".")) for old in olds if old not in kept]
    return kept[0], [averaged_beside(key) for key in averaged]


def _same(state: State, one: str, other: str) -> bool:
    """Returns whether the tensors under two prefixes are equal."""
    for name, value in state.items():
        if name.startswith(one):
            twin = state.get(other + name.removeprefix(one))
            if twin is not None and not _equal(value, twin):
                return False
    return True


def _equal(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors are equal bit by bit: some types know no other comparison."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    pair = [value.flatten().view(torch.uint8) for value in (one, other)]
    return torch.equal(*pair)


def _taken(
    state: State, expected: State, old: str, new: str, notes: list[str]
) -> tuple[State, list[str]]:
    """Returns what lies under a prefix, without what stands beside a network, and notes."""
    network = {}
    left = []
    for name, value in state.items():
        inner = new + name.removeprefix(old)
        is_beside = inner not in expected and not _BESIDE.isdisjoint(inner.split("."))
        if not name.startswith(old) or is_beside:
            left.append(name)
        else:
            network[inner] = value

    if old != new:
        notes = [*notes, _renamed(old, new)]
    if left:
        notes = [*notes, f"left out {len(left)} other tensors ({listed(left)})"]
    return network, notes


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
    old, new = one_line(old), one_line(new)
    if old.endswith(new):
        return f"stripped the prefix '{old.removesuffix(new)}'"
    if new.endswith(old):
        return f"added the prefix '{new.removesuffix(old)}'"
    return f"replaced the prefix '{old}' by '{new}'"


# Single tensors.


def _without_counters(state: State, expected: State) -> tuple[State, list[str]]:
    lasts = {name.rpartition(".")[2] for name in expected}
    dropped = [name for name in state if name.rpartition(".")[2] in _COUNTERS - lasts]
    if not dropped:
        return state, []
    if dropped == ["n_averaged"]:
        return _without(state, dropped), ["dropped the counter of averaged models"]
    return _without(state, dropped), [f"dropped {len(dropped)} counters ({listed(dropped)})"]


def _unpruned(state: State, expected: State) -> tuple[State, list[str]]:
    """Multiplies the weights that `torch.nn.utils.prune` has split by their masks."""
    if any(name.endswith("_orig") for name in expected):
        return state, []

    found: dict[str, Tensor] = {}
    masks = 0
    for name, value in state.items():
        mask = state.get(name.removesuffix("_orig") + "_mask")
        if name.endswith("_orig") and mask is not None and mask.shape == value.shape:
            found[name.removesuffix("_orig")] = value * mask.to(value.dtype)
            masks += 1
        elif not (name.endswith("_mask") and name.removesuffix("_mask") + "_orig" in state):
            found[name] = value
    return found, [f"multiplied {masks} weights by their pruning masks"] if masks else []


def _weight_norm(state: State, expected: State) -> tuple[State, list[str]]:
    """Renames or joins the weights that weight norm has split into gain and direction."""
    is_new = any(name.endswith(_DIRECTION) for name in expected)
    is_old = any(name.endswith("weight_v") for name in expected)
    gain, direction = (_GAIN, _DIRECTION) if is_new else ("weight_g", "weight_v")
    found = dict(state)
    count = 0
    for name, stem in _split_weights(state):
        g = found.pop(f"{stem}{_GAIN if name.endswith(_DIRECTION) else 'weight_g'}")
        v = found.pop(name)
        if is_new or is_old:
            found |= {stem + gain: g, stem + direction: v}
        else:
            found[f"{stem}weight"] = _unit_directions(v, g) * g
            count += 1
    return found, [f"joined {count} weights that weight norm had split"] if count else []


def _split_weights(state: State) -> Iterator[tuple[str, str]]:
    """Yields the name of each direction that has its gain, and the module that it belongs to."""
    for gain, direction in (("weight_g", "weight_v"), (_GAIN, _DIRECTION)):
        for name in state:
            stem = name.removesuffix(direction)
            if name.endswith(direction) and stem + gain in state:
                yield name, stem


def _unit_directions(direction: Tensor, gain: Tensor) -> Tensor:
    """Returns directions of length 1; a gain has one number for each."""
    others = [axis for axis in range(gain.ndim) if gain.shape[axis] == 1]
    length: Tensor = torch.linalg.vector_norm(direction, dim=others, keepdim=True)
    return direction / length


def _own_statistics(state: State, expected: State) -> tuple[State, list[str]]:
    """Adds the normalisation that a network holds itself and that the file lacks."""
    kept = {}
    for name, value in expected.items():
        lacks = not any(f".{other}".endswith(f".{name}") for other in state)
        if lacks and is_statistic(name) and not is_lazy(value) and value.numel() <= 4:
            kept[_shared_prefix(state) + name] = value
    if not kept or len(kept) == len(expected):
        return state, []
    names = listed(kept)
    return {**state, **kept}, [f"kept the network's own {names}, which the file lacks"]


def _without_wrappers(state: State, expected: State) -> tuple[State, list[str]]:
    """Drops what DataParallel and `torch.compile` put anywhere into names."""
    parts = {part for name in expected for part in name.split(".")}
    wrappers = _WRAPPERS - parts
    found = {}
    for name, value in state.items():
        inner = [part for part in name.split(".") if part not in wrappers]
        found[".".join(inner)] = value
    if len(found) < len(state) or found.keys() == state.keys():
        return state, []
    return found, [f"dropped {' and '.join(sorted(wrappers))} within names"]


def _without(state: State, names: Iterable[str]) -> State:
    dropped = set(names)
    return {name: value for name, value in state.items() if name not in dropped}
