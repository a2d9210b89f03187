"""What is to be evaluated, and how."""

from dataclasses import dataclass

import torch

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Dataset


@dataclass(frozen=True)
class Request:
    """A defence, data, a threat and a suite, and the engine that is to run it."""

    subject: Subject
    data: Dataset
    threat: Threat
    suite: Suite
    device: torch.device
    seed: int = 0
    batch_size: int = 250
    engine: str = "autoattack"
