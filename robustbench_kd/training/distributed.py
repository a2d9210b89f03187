"""Several processes that train one network, started by torchrun.

Each takes its rows of every batch. What a process computes is its part of a mean over the batch,
and everything is summed. DistributedDataParallel does not fit: an attack differentiates with
respect to images, by `torch.autograd.grad`, which it does not support; methods pass several batches
through a network before one backward pass, hook its layers and ask it for more than `forward`; and
a helper learns beside it. So gradients are summed after the backward pass, in one bucket, by
`all_reduce`.

Batch normalisation normalises with the rows of its own process, and what it keeps is averaged over
the processes after every step. SyncBatchNorm would normalise with all rows, but it has no CPU form
and no second derivative, which igdm needs.

With one process every function here does nothing.
"""

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn, optim

from robustbench_kd.core.errors import UsageError


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started, if there are several, each on its own device.

    A process that fails does not leave the group, because it would wait for the others: torchrun
    ends them.
    """
    if _together() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield
    distributed.destroy_process_group()


def processes() -> int:
    """Returns how many processes train together."""
    return distributed.get_world_size() if _together() else 1


def leads() -> bool:
    """Returns whether this process prints and writes for all."""
    return _rank() == 0


def mine(rows: Tensor) -> Tensor:
    """Returns the rows that this process takes of those that all have.

    Raises `UsageError` for fewer than two each.
    """
    if _together() and len(rows) < 2 * processes():
        raise UsageError(
            f"expected two examples for each of {processes()} processes, got {len(rows)}: raise "
            "batch_size or validation, or start fewer processes"
        )
    return rows.tensor_split(processes())[_rank()]


def source(shared: torch.Generator, seed: int, step: int) -> torch.Generator:
    """Returns what this process draws from during a step: the shared generator where it is alone.

    Otherwise it is the global one, seeded for process and step, so that noise differs between
    processes, the shared one stays in step, and a resumed training draws what it would have drawn.
    """
    if not _together():
        return shared
    return torch.manual_seed(random.Random(f"{seed}/{step}/{_rank()}").getrandbits(63))


def align(*modules: nn.Module) -> None:
    """Gives all processes the weights of the first one."""
    if not _together():
        return
    for module in modules:
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, src=0)


def summed(values: Tensor) -> Tensor:
    """Returns the sums over all processes, without a gradient."""
    return _sums([values.detach()])[0] if _together() else values


def sum_gradients(optimiser: optim.Optimizer) -> None:
    """Gives every parameter the sum of its gradients in all processes."""
    if not _together():
        return
    gradients: list[Tensor] = []
    for group in optimiser.param_groups:
        gradients += [one.grad for one in group["params"] if one.grad is not None]
    for gradient, total in zip(gradients, _sums(gradients), strict=True):
        gradient.copy_(total)


@contextmanager
def in_common(*modules: nn.Module) -> Iterator[None]:
    """Moves every element of a buffer by the mean over the processes that moved it in a step.

    All of them move statistics of a batch, but only one of them what a memory bank holds of an
    example. A NaN stands for what is not known yet. Comes to its end after the backward pass, which
    would miss what it changes.
    """
    if not _together():
        yield
        return
    before = [buffer.where(~buffer.isnan(), 0) for buffer in _buffers(modules)]
    yield
    after = _buffers(modules)
    moves, movers = [], []
    for new, old in zip(after, before, strict=True):
        moves.append(torch.where(new == old, 0, new - old))
        movers.append(moves[-1] != 0)
    totals = _sums([*moves, *movers])
    count = len(after)
    for new, old, move, number in zip(after, before, totals[:count], totals[count:], strict=True):
        new.copy_(old + move / number.clamp(min=1))


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _rank() -> int:
    return distributed.get_rank() if _together() else 0


def _buffers(modules: Sequence[nn.Module]) -> list[Tensor]:
    found: list[Tensor] = []
    for module in modules:
        found += filter(torch.is_floating_point, module.buffers())
    return found


def _sums(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the sums over all processes, sent as one."""
    if not tensors:
        return []
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    parts = flat.split_with_sizes([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
