"""Finds the mean and the deviation of images among the tensors of a file."""

import re
from collections.abc import Mapping

from torch import Tensor

from robustbench_kd.checkpoints.card import Normalisation

State = Mapping[str, Tensor]
_CHANNELS = 4  # of images, at most
_BYTES = 255.0
_MEAN = re.compile(r"(?P<stem>(?:.*\.)?(?!running_)(?:[a-z]*_)?)(?P<word>means?|mu)")
_DEVIATIONS = ("std", "stds", "stddev", "sd", "sds", "sigma")
_VARIANCES = ("var", "variance")
_LARGEST_VARIANCE = 0.12  # of pixels in [0, 1]: people also call a deviation `var`


def is_statistic(name: str) -> bool:
    """Returns whether a tensor is called like the mean or the deviation of images.

    >>> is_statistic("normalize.new_mean"), is_statistic("bn.running_mean")
    (True, False)
    """
    if _MEAN.fullmatch(name):
        return True
    last = name.rpartition(".")[2]
    return last.rpartition("_")[2] in _DEVIATIONS and not last.startswith("running_")


def take_normalisation(state: State, expected: State) -> tuple[State, Normalisation | None]:
    """Returns the state without the first mean and deviation that a network lacks, and these."""
    for name, mean in state.items():
        partner = _partner(name, state)
        if partner is None or mean.numel() > _CHANNELS or _within(name, expected):
            continue
        try:
            normalisation = _normalisation(mean, state[partner], partner)
        except ValueError:  # not statistics: they stay, and are reported as unexpected
            continue
        rest = {other: value for other, value in state.items() if other not in {name, partner}}
        return rest, normalisation
    return state, None


def _partner(name: str, state: State) -> str | None:
    """Returns the name of the deviation or variance that belongs to a mean; None if none does."""
    match = _MEAN.fullmatch(name)
    if match is None:
        return None
    names = (match["stem"] + word for word in (*_DEVIATIONS, *_VARIANCES))
    return next((other for other in names if other in state), None)


def _normalisation(mean: Tensor, spread: Tensor, partner: str) -> Normalisation:
    """Returns the normalisation of images in [0, 1]; raises `ValueError` for what is none."""
    mean, spread = mean.double().flatten(), spread.double().flatten()
    if partner.endswith(_VARIANCES) and bool((spread < _LARGEST_VARIANCE).all()):
        spread = spread.sqrt()
    if bool((mean > 1).any()) and bool((spread > 1).all()):  # of pixels from 0 to 255
        mean, spread = mean / _BYTES, spread / _BYTES
    return Normalisation(mean=tuple(mean.tolist()), std=tuple(spread.tolist()))


def _within(name: str, expected: State) -> bool:
    """Tells whether the network itself has this tensor, possibly under another prefix."""
    for other in expected:
        if f".{name}".endswith(f".{other}") or f".{other}".endswith(f".{name}"):
            return True
    return False
