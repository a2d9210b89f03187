"""What an evaluation would cost at most, and how much of it is done; no model is asked anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from robustbench_kd.core.records import Identity
from robustbench_kd.core.rundir import LEDGER, stored_record
from robustbench_kd.core.suites import Suite
from robustbench_kd.engine.autoattack import package as autoattack
from robustbench_kd.engine.run.plan import question
from robustbench_kd.engine.run.request import Request
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.oracle import Oracle

State = Literal["done", "unfinished", "to do"]


@dataclass(frozen=True)
class Forecast:
    """The run that would answer a request.

    `passes` are forward and backward passes if no attack broke any example; what attacks of a
    person's own cost is not known and not in it.
    """

    identity: Identity
    folder: Path
    state: State
    passes: int
    randomized: bool


def forecast(request: Request, results: Path) -> Forecast:
    """Returns what a request would cost; raises `RecordError` where its stored record is damaged."""
    oracle = Oracle(request.subject.model, torch.device("cpu"), seed=request.seed)
    asked = question(request, oracle, request.data.classes)
    folder = asked.folder(results)
    each = sum(_passes(step, asked.suite, request) for step in asked.steps)
    return Forecast(
        asked.identity, folder, _state(folder), round(each * len(request.data)), oracle.randomized
    )


def _passes(step: Stage, suite: Suite, request: Request) -> float:
    norm, classes = request.threat.norm, request.data.classes
    if request.engine == "autoattack" and not step.adaptive:
        return autoattack.passes(step.name, suite, norm, classes)
    return step.share * step.passes(norm, classes)


def _state(folder: Path) -> State:
    if stored_record(folder):
        return "done"
    ledgers = folder.glob(f"{Path(LEDGER).stem}*")  # the run's own, and those of shards
    return "unfinished" if any(path.stat().st_size for path in ledgers) else "to do"
