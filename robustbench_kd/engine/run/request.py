"""What is to be evaluated, and how."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.passes.speedups import Speedups
from robustbench_kd.engine.run.stages import Extra
from robustbench_kd.tensors.contracts import Dataset


@dataclass(frozen=True)
class Request:
    """A defence, data, a threat and a suite, and the engine that is to run it.

    A batch size of 0 is chosen by trial. `speedups` make the search faster; verdicts are judged
    without them. `probes` says whether the model is checked first. `smaller` is the folder of a
    finished run at a smaller radius of the same norm: what it broke is broken here, too. `saves`
    asks for the images that decide; it changes no verdict and no run id. With `at_least`, only so
    many examples are evaluated as it takes to know whether the robust accuracy of all reaches it.
    """

    subject: Subject
    data: Dataset
    threat: Threat
    suite: Suite
    device: torch.device
    seed: int = 0
    batch_size: int = 250
    speedups: Speedups = field(default_factory=Speedups)
    engine: str = "native"
    extra: Extra = field(default_factory=Extra)
    smaller: Path | None = None
    probes: bool = True
    at_least: float | None = None
    saves: bool = False
