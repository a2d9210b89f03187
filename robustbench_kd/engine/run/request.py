"""What is asked: which defence, on which data, under which threat, by which suite."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.records import Source
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.passes.speedups import Speedups
from robustbench_kd.tensors.contracts import Classifier, Dataset
from robustbench_kd.tensors.defence import Adversary


@dataclass(frozen=True)
class Extra:
    """What a person adds to the adaptive attacks, by name.

    `surrogates` are models to attack in place of the defence, `attacks` call the defence
    themselves.
    """

    surrogates: Mapping[str, Classifier] = field(default_factory=dict)
    attacks: Mapping[str, Callable[..., Adversary]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A defence, data, a threat and a suite, and how to run it.

    Args:
        subject: The loaded defence.
        data: The images with their labels.
        threat: The norm and the radius.
        suite: The attacks.
        device: Where the defence runs.
        seed: Seed of all randomness.
        batch_size: Images per batch; 0 is chosen by trial.
        speedups: What makes the search faster; verdicts are judged without them.
        engine: The name of the engine.
        extra: Surrogates and attacks of a person's own, for adaptive suites.
        smaller: The folder of a finished run at a smaller radius of the same norm: an example that
            it broke is broken here, too.
        probes: Whether the model is checked first.
        at_least: A robust accuracy; only so many examples are evaluated as it takes to know whether
            all of them together reach it.
        saves: Whether the images that decide are kept; it changes no verdict and no run id.
        source: Where the subject and the data were found; it only goes into the record.
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
    source: Source = field(default_factory=Source)
