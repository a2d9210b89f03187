"""Finds by trial the batch size with the least time per image for a step of an attack.

Verdicts do not depend on the batch size, so noise in the measured time does no harm to them.
"""

import time
from statistics import fmean

import torch

from robustbench_kd.engine.passes.batching import halved
from robustbench_kd.tensors.contracts import Classifier, Images
from robustbench_kd.tensors.oracle import guarded, is_out_of_memory

_FIRST = 16
_GAIN = 0.95  # a larger batch is better if its seconds per image are less than this part
_NEARLY = 0.9  # a batch is nearly the fastest if the fastest needs more than this part of its time
# Operations on images that an attack adds to its passes: 57 in a step of APGD, 68 in one of Square.
_OWN = 60
# Sizes up to this many times the best one are tried: one bad doubling may be a disturbance.
_PATIENCE = 4
# Seconds of steps of one size. Their mean counts: a minimum favours short steps on a busy machine.
_TRIAL = 0.2
_SLOW = 3.0  # seconds for one batch, after which no larger one is tried
_ROOM = 0.7  # of the memory of a GPU; the slots hold several copies of their images, too


def batch_size(ask: Classifier, images: Images, device: torch.device, *, most: int) -> int:
    """Returns the largest power of two, at most `most`, with nearly the least time per image.

    The time is that of a forward pass, a backward pass and the operations that an attack adds. The
    largest of nearly equal sizes is taken, because forward passes alone and the projections of FAB
    gain from larger batches, too.

    Args:
        ask: What the search asks; not compiled, which would compile it for each size.
        images: Some images `(n, c, h, w)` on any device; they are repeated as needed.
        device: Where `ask` wants them.
        most: Rows that a run can fill, at least 1.

    Raises:
        IncompleteError: If not even one image fits in memory.
    """
    size = min(_FIRST, _power_below(most))
    while (seconds := _seconds(ask, _rows(images, size), device)) is None:
        size = halved(size)
    best, costs = size, {size: seconds / size}
    while 2 * size <= most and size < _PATIENCE * best and costs[size] * size <= _SLOW:
        size *= 2
        seconds = _seconds(ask, _rows(images, size), device)
        if seconds is None or _crowded(device):
            break
        costs[size] = seconds / size
        if costs[size] < _GAIN * costs[best]:
            best = size
    return max(size for size, cost in costs.items() if _NEARLY * cost <= min(costs.values()))


def _seconds(ask: Classifier, images: Images, device: torch.device) -> float | None:
    """Returns the mean seconds of a step, None where memory runs out.

    The first step warms up and does not count, unless it is so long that it is the only one.
    """
    try:
        points = images.to(device)
        first, runs = _timed(ask, points, device), list[float]()
        while first < _TRIAL and sum(runs) < _TRIAL:
            runs.append(_timed(ask, points, device))
        return fmean(runs or [first])
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _timed(ask: Classifier, images: Images, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    _step(ask, images)
    for _ in range(_OWN):
        images = images + 1
    _wait(device)
    return time.perf_counter() - start


def _step(ask: Classifier, images: Images) -> None:
    """Asks as an attack does, with a gradient; without one where the model has none."""
    points = images.detach().requires_grad_()
    try:
        with torch.enable_grad():
            logits = ask(points.clone())
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), points, allow_unused=True)
    except (Exception, SystemExit) as error:  # foreign code can raise anything, and exit, too
        if is_out_of_memory(error):
            raise
        with guarded("the model failed on images of the data set"), torch.no_grad():
            ask(images.clone())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _crowded(device: torch.device) -> bool:
    """Tells whether too little memory of a GPU is left."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return total - free > _ROOM * total


def _rows(images: Images, size: int) -> Images:
    return images.repeat(-(-size // len(images)), 1, 1, 1)[:size]


def _power_below(most: int) -> int:
    """Returns the largest power of two that is not above a number of at least 1."""
    return int(2 ** (most.bit_length() - 1))
