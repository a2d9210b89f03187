"""Runs a model under a seed: every generator that it may ask is set, and put back afterwards."""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

_WORD = 2**32


def seed_of(*parts: object) -> int:
    """Returns a seed below 2^63 that depends on the parts alone.

    >>> seed_of(0, "score", 7) == seed_of(0, "score", 7)
    True
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(seed: int, model: nn.Module) -> Iterator[None]:
    """Seeds the generators of torch, numpy and Python, and those that a model holds itself."""
    with forked(model) as reseed:
        reseed(seed)
        yield


@contextmanager
def forked(model: nn.Module) -> Iterator[Callable[[int], None]]:
    """Gives a function that seeds all these generators; they are put back afterwards."""
    devices = list(range(torch.cuda.device_count())) if _uses_cuda() else []
    own = generators(model)

    def reseed(seed: int) -> None:
        torch.manual_seed(seed)
        np.random.seed(seed % _WORD)  # noqa: NPY002  # it is this generator that models ask
        random.seed(seed)
        for generator in own:
            _reseed(generator, seed)

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        for restore in _kept(own):
            stack.callback(restore)
        yield reseed


def generators(model: nn.Module) -> list[Any]:
    """Returns the generators that the modules of a model hold as attributes."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    found = []
    for module in model.modules():
        found += [value for value in vars(module).values() if isinstance(value, kinds)]
    return found


def global_state() -> tuple[object, ...]:
    """Returns the state of all global generators, for a comparison."""
    python = random.getstate()
    _, words, place, *_ = np.random.get_state(legacy=True)  # noqa: NPY002
    cuda: list[bytes] = []
    if _uses_cuda():
        cuda = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    return torch.get_rng_state().numpy().tobytes(), np.asarray(words).tobytes(), place, python, cuda


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _kept(own: list[Any]) -> list[Callable[[], object]]:
    """Returns what puts the generators outside of torch, and a model's own ones, back."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    python_state = random.getstate()
    restores: list[Callable[[], object]] = [
        lambda: np.random.set_state(numpy_state),  # noqa: NPY002
        lambda: random.setstate(python_state),
    ]
    return restores + [_restore(generator) for generator in own]


def _restore(generator: Any) -> Callable[[], object]:
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        state = bits.state
        return lambda: setattr(bits, "state", state)
    if isinstance(generator, random.Random):
        python = generator.getstate()
        return lambda: generator.setstate(python)
    state = generator.get_state()
    return lambda: generator.set_state(state)


def _reseed(generator: Any, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    else:
        generator.seed(seed % _WORD)
