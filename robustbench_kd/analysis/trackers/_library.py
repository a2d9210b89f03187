"""Imports the library of a tracker, which is an extra."""

from importlib import import_module
from typing import Any

from robustbench_kd.core.errors import UsageError


def library(name: str) -> Any:
    """Returns a module, which mypy need not know.

    Raises `UsageError` that says how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        extra = name.partition(".")[0]
        raise UsageError(
            f"cannot import {name} ({error}): install it with pip install 'robustbench-kd[{extra}]'"
        ) from error
