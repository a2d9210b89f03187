"""Bounds what a description may build: a few numbers in a card can ask for any size."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from torch.nn.modules import module as hooks

from robustbench_kd.checkpoints.sharded import is_index, shards
from robustbench_kd.core.errors import UsageError

MOST_PARAMETERS = 2**31
_LEAST = 2**20  # parameters that any file of weights may fill
_MOST_PARTS = 50_000


def parameters_for(weights: Path | None) -> int:
    """Returns how many parameters a weights file can fill: each takes a byte at least.

    Raises `CheckpointError` for an index of shards that cannot be read.
    """
    if weights is None or not weights.is_file():
        return MOST_PARAMETERS
    files = shards(weights) if is_index(weights) else [weights]
    return max(_LEAST, sum(file.stat().st_size for file in files))


@contextmanager
def counted(most: int) -> Iterator[None]:
    """Raises `UsageError` once what is built has more than `most` parameters or too many parts.

    A layer registers its parameters before it fills them, so that memory is only reserved.
    """
    parameters = parts = 0

    def count_parameters(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        count_parts(module, name, None)
        parameters += 0 if parameter is None else parameter.numel()
        if parameters > most:
            raise UsageError(
                f"the network would have more than {most:,} parameters, which is more than its "
                "weights file can fill or than is built at all: choose smaller arguments"
            )

    def count_parts(_module: nn.Module, _name: str, _part: nn.Module | None) -> None:
        nonlocal parts
        parts += 1
        if parts > _MOST_PARTS:
            raise UsageError(
                f"the network would have more than {_MOST_PARTS:,} layers and tensors: choose "
                "smaller arguments"
            )

    handles = [
        hooks.register_module_parameter_registration_hook(count_parameters),
        hooks.register_module_module_registration_hook(count_parts),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
