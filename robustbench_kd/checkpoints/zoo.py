"""Loads models of other libraries: `robustbench:ID`, `timm:ID`, `torchvision:ID`.

A library is imported only when one of its models is requested.
"""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from robustbench_kd.checkpoints._text import one_line
from robustbench_kd.checkpoints.card import Normalisation
from robustbench_kd.core.errors import CheckpointError, UsageError

_PACKAGES = {
    "robustbench": "robustbench-kd[robustbench]",
    "timm": "robustbench-kd[timm]",
    "torchvision": "torchvision",
}

Loaded = tuple[nn.Module, Normalisation | None]


def load_from_zoo(library: str, identifier: str) -> Loaded:
    """Returns a published model in evaluation mode and the normalisation it expects.

    Raises `UsageError` where the library is missing, `CheckpointError` where it cannot give the
    model.
    """
    try:
        network, normalisation = ZOOS[library](identifier)
    except ModuleNotFoundError as error:
        missing = (error.name or library).partition(".")[0]
        raise UsageError(
            f"'{library}:{identifier}' needs {missing}, which is not installed: "
            f"pip install '{_PACKAGES[library]}'"
        ) from error
    # Another library's loader can raise anything, a failed download included.
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise CheckpointError(f"{library} cannot load '{identifier}': {reason}") from error
    return network.eval(), normalisation


def _timm(identifier: str) -> Loaded:
    import timm  # noqa: PLC0415  # an extra

    network = timm.create_model(identifier, pretrained=True)
    config = network.pretrained_cfg
    return network, Normalisation(mean=config["mean"], std=config["std"])


def _torchvision(identifier: str) -> Loaded:
    # A CPU-only torch breaks this import, so it happens only here.
    from torchvision import models  # noqa: PLC0415

    weights = models.get_model_weights(identifier).DEFAULT
    network = models.get_model(identifier, weights=weights)
    transforms: Any = weights.transforms()
    return network, Normalisation(mean=transforms.mean, std=transforms.std)


def _robustbench(identifier: str) -> Loaded:
    """Loads `[DATASET/THREAT/]ID`; these models normalise inside.

    The released package depends on pyautoattack but imports autoattack, so pyautoattack is offered
    under that name.
    """
    if "autoattack" not in sys.modules and importlib.util.find_spec("autoattack") is None:
        import pyautoattack  # noqa: PLC0415
        import pyautoattack.state  # noqa: PLC0415

        sys.modules["autoattack"] = pyautoattack
        sys.modules["autoattack.state"] = pyautoattack.state
    from robustbench.utils import load_model  # noqa: PLC0415

    parts = identifier.split("/")
    if len(parts) != 3:
        parts = ["cifar10", "Linf", parts[-1]]
    dataset, threat, name = parts
    return load_model(name, dataset=dataset, threat_model=threat), None


ZOOS: dict[str, Callable[[str], Loaded]] = {
    "robustbench": _robustbench,
    "timm": _timm,
    "torchvision": _torchvision,
}
