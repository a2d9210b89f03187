"""Chooses the device that a person named."""

import re

import torch

from robustbench_kd.core.errors import UsageError


def choose(name: str) -> torch.device:
    """Returns the device of `auto`, `cpu`, `cuda` or `cuda:1`; raises `UsageError` for others."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?", name):
        raise UsageError(f"expected --device auto, cpu, cuda or cuda:N, got '{name}'")

    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"there is no device '{name}': {torch.cuda.device_count()} CUDA devices are visible"
        )
    return device


def of_worker(name: str, number: int) -> str:
    """Returns the device of a worker, counted from 1.

    Each takes its own of several GPUs, unless one of them is named.
    """
    count = torch.cuda.device_count()
    if name in {"auto", "cuda"} and count > 1:
        return f"cuda:{(number - 1) % count}"
    return name
