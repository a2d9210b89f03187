"""Fast runs: an attack on a random sample of the survivors, and on all of them as soon as one of the sample falls.

Where none falls, the survivors that nobody attacked count as robust, and the record says how many
of them could have fallen with 95 % confidence. A guess from a sample is never ranked among exact
numbers.
"""

import math

import torch
from scipy.stats import hypergeom

from robustbench_kd.core.ledger import Entry, decisions_of
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.engine.judging.judge import standing_decision
from robustbench_kd.engine.run.run import Job, standing
from robustbench_kd.tensors.keyed_random import uniform

SAMPLED = "sampled"
_DOUBT = 0.05
_FREE = {"forwards": 0, "backwards": 0}


def sampled(job: Job, position: int, ledger: list[Entry]) -> list[int]:
    """Returns the rows of the survivors that a stage attacks first; the same ones after an interruption."""
    alive = standing(job, position, ledger)
    size = math.ceil(job.steps[position].share * len(alive))
    ids = torch.tensor(alive, dtype=torch.int64)
    draws = uniform(
        job.seed, f"sample/{job.steps[position].name}", ids, torch.zeros_like(ids), 0, 1
    ).flatten()
    chosen = {alive[place] for place in draws.argsort(stable=True)[:size].tolist()}
    return [row for row, example in enumerate(job.data.ids) if example in chosen]


def fell(job: Job, position: int, ledger: list[Entry]) -> bool:
    """Tells whether a stage has broken any example."""
    return any(
        decision.broken for decision in decisions_of(ledger, job.steps[position].name).values()
    )


def left_out_of_sample(job: Job, position: int, ledger: list[Entry]) -> Entry:
    """Returns the entry that lets the survivors outside the sample stand, and says so."""
    name = job.steps[position].name
    alive, done = standing(job, position, ledger), decisions_of(ledger, name)
    rows = [row for row, example in enumerate(job.data.ids) if example in set(alive) - done.keys()]
    most = missed(len(alive), len(done), _stages(job))
    finding = Finding(
        check=SAMPLED,
        severity=Severity.INFO,
        message=f"{name} ran on {len(done)} of {len(alive)} survivors and broke none: at most {most} of the others could fall",
        advice="use --mode exact for a number to publish",
        value=most / len(job.data),
        threshold=_DOUBT,
    )
    return Entry(
        stage=name,
        decisions=[
            standing_decision(job.data, job.logits, row).model_copy(update=_FREE) for row in rows
        ],
        findings=[finding],
    )


def in_full(job: Job, position: int) -> Entry:
    """Returns the entry that says why a stage runs on all survivors after all."""
    name = job.steps[position].name
    finding = Finding(
        check="sample-fell",
        severity=Severity.INFO,
        message=f"{name} broke an example of its sample that the attacks before had missed: it runs on all survivors",
    )
    return Entry(stage=name, findings=[finding])


def missed(n: int, sample: int, stages: int = 1) -> int:
    """Returns how many of n survivors an attack could break that broke none of a random sample of them.

    With 95 % confidence for all `stages` together: the largest number for which a sample without a
    hit is not too unlikely under the hypergeometric distribution.

    >>> missed(110, 17)
    16
    """
    doubt = _DOUBT / stages
    return max(
        (
            hits
            for hits in range(n - sample + 1)
            if float(hypergeom.pmf(0, n, hits, sample)) > doubt
        ),
        default=0,
    )


def _stages(job: Job) -> int:
    return sum(step.share < 1 for step in job.steps)
