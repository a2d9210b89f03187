"""What an evaluation would cost at most, and how much of it is done; no model is called."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from robustbench_kd.core.agreement import stored_record
from robustbench_kd.core.records import Identity
from robustbench_kd.core.rundir import LEDGER
from robustbench_kd.engine.engines import open_engine
from robustbench_kd.engine.run.plan import make_plan
from robustbench_kd.engine.run.request import Request
from robustbench_kd.tensors.oracle import Oracle

State = Literal["done", "unfinished", "to do"]


@dataclass(frozen=True)
class Forecast:
    """The run that would answer a request.

    `passes` are forward and backward passes if no attack broke any example; attacks of a person's
    own are not in it, because their cost is unknown.
    """

    identity: Identity
    folder: Path
    state: State
    passes: int
    randomized: bool


def forecast(request: Request, results: Path) -> Forecast:
    """Returns what a request would cost; raises `RecordError` where its record is damaged."""
    oracle = Oracle(request.subject.model, torch.device("cpu"), seed=request.seed)
    classes = request.data.classes
    plan = make_plan(request, oracle, classes)
    engine = open_engine(request.engine)

    passes = 0.0
    for stage in plan.stages:
        passes += stage.fraction * engine.passes(plan, stage, classes)

    folder = plan.folder(results)
    return Forecast(
        identity=plan.identity,
        folder=folder,
        state=_state(folder),
        passes=round(passes * len(request.data)),
        randomized=oracle.randomized,
    )


def _state(folder: Path) -> State:
    if stored_record(folder):
        return "done"
    ledgers = folder.glob(f"{Path(LEDGER).stem}*")  # the run's own, and those of shards
    if any(path.stat().st_size for path in ledgers):
        return "unfinished"
    return "to do"
