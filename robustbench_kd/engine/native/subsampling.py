"""Fast runs: an attack on a random sample of the survivors, and on all if it breaks one of them.

Where it breaks none, the survivors that were not attacked count as robust, and the record says how
many of them could have been broken, with 95 % confidence. A guess from a sample is never ranked
among exact numbers.
"""

import math

import torch
from scipy.stats import hypergeom

from robustbench_kd.core.ledger import Entry
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.core.verdicts import SAMPLED
from robustbench_kd.engine.judging.judge import survival
from robustbench_kd.engine.run.run import Run
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.keyed_random import uniform

_DOUBT = 0.05


def sampled(run: Run, stage: Stage) -> list[int]:
    """Returns the rows of the survivors that a stage attacks first; a resumed run has the same."""
    survivors = run.survivors(stage)
    size = math.ceil(stage.fraction * len(survivors))
    ids = torch.tensor(survivors, dtype=torch.int64)

    draws = uniform(run.seed, f"sample/{stage.name}", ids, torch.zeros_like(ids), 0, 1).flatten()
    order = draws.argsort(stable=True)[:size]
    chosen = {survivors[index] for index in order.tolist()}
    return [row for row, example in enumerate(run.data.ids) if example in chosen]


def broke_any(run: Run, stage: Stage) -> bool:
    """Returns whether a stage has broken any example."""
    decisions = run.index.decisions(stage.name).values()
    return any(decision.broken for decision in decisions)


def closed(run: Run, stage: Stage) -> bool:
    """Returns whether the ledger says of a stage already that its sample is enough."""
    entries = run.index.entries(stage.name)
    return any(finding.check == SAMPLED for entry in entries for finding in entry.findings)


def left_out_of_sample(run: Run, stage: Stage) -> Entry:
    """Returns the entry that lets the survivors outside the sample count as robust, and says so."""
    survivors = run.survivors(stage)
    attacked = len(run.index.decisions(stage.name))
    rows = run.pending(stage)
    sampling_stages = sum(one.fraction < 1 for one in run.stages)
    most = missed(len(survivors), attacked, sampling_stages)

    message = (
        f"{stage.name} ran on {attacked} of {len(survivors)} survivors and broke none: "
        f"at most {most} of the others could be broken"
    )
    finding = Finding(
        check=SAMPLED,
        severity=Severity.INFO,
        message=message,
        advice="use --mode exact for a number to publish",
        value=most / len(run.data),
        threshold=_DOUBT,
    )
    decisions = []
    for row in rows:
        decision = survival(run.data, run.logits, row)
        decisions.append(decision.model_copy(update={"forwards": 0, "backwards": 0}))
    return Entry(stage=stage.name, decisions=decisions, findings=[finding])


def in_full(stage: Stage) -> Entry:
    """Returns the entry that says why a stage runs on all survivors after all."""
    message = (
        f"{stage.name} broke an example of its sample that the attacks before had missed: "
        "it runs on all survivors"
    )
    finding = Finding(check="sample-fell", severity=Severity.INFO, message=message)
    return Entry(stage=stage.name, findings=[finding])


def missed(n: int, sample: int, stages: int = 1) -> int:
    """Returns how many of n survivors an attack could break that broke none of a random sample.

    The number holds with 95 % confidence for all `stages` together. It is the largest one for which
    a sample without a success is not too unlikely under the hypergeometric distribution.

    >>> missed(110, 17)
    16
    """
    doubt = _DOUBT / stages
    largest = 0
    for breakable in range(n - sample + 1):
        if float(hypergeom.pmf(0, n, breakable, sample)) > doubt:
            largest = breakable
    return largest
