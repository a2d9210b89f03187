"""Runs the AutoAttack package attack by attack on the survivors; the oracle of parity tests and benchmarks.

Same verdicts as the package's own loop, given the same batch size and seed: it too attacks only
what still stands, in batches of consecutive survivors. This loop can be resumed after any batch,
counts passes, judges success itself, and halves the batch where memory runs out. The package draws
its random numbers per batch, so the batch size is part of a result's identity. Of a randomized
defence the package believes a single draw; so does this engine, to show its number beside the
expected accuracy on the same images.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.ledger import Decision, Entry
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.engine.autoattack import package as autoattack
from robustbench_kd.engine.judging.judge import Judgement, decisions, judge
from robustbench_kd.engine.judging.packing import packed
from robustbench_kd.engine.passes.batching import in_batches
from robustbench_kd.engine.run.run import Job, pending, progress
from robustbench_kd.tensors.contracts import Dataset, Images


def entries(job: Job, ledger: list[Entry]) -> Iterator[Entry]:
    """Yields what is decided, batch by batch; `ledger` holds what earlier runs decided and grows as entries are kept.

    Raises `IncompleteError` where even a batch of one image does not fit in memory.
    """
    if job.suite.settings not in autoattack.SETTINGS or job.suite.adaptive:
        raise UsageError(
            f"the AutoAttack package has no suite '{job.suite.name}': use --engine native"
        )
    costs = [
        autoattack.passes(attack, job.suite, job.threat.norm, job.classes)
        for attack in job.suite.attacks
    ]
    for position, attack in enumerate(job.suite.attacks):

        def attack_batch(rows: list[int], position: int = position, attack: str = attack) -> Entry:
            passes = job.oracle.forwards + job.oracle.backwards
            job.tracker.at(progress(job, position, costs, ledger, passes))
            return _attack(job, attack, rows)

        yield from in_batches(pending(job, position, ledger), job.batch_size, attack_batch)


def _attack(job: Job, attack: str, rows: list[int]) -> Entry:
    start, forwards, backwards = time.perf_counter(), job.oracle.forwards, job.oracle.backwards
    batch = job.data.take(torch.tensor(rows))
    flags = autoattack.Flags()
    candidates = autoattack.perturb(
        attack,
        job.oracle,
        batch.images,
        batch.labels,
        threat=job.threat,
        suite=job.suite,
        classes=job.classes,
        seed=job.seed,
        flags=flags,
    )
    judgement = judge(job.oracle, candidates, batch, job.threat)
    return Entry(
        stage=attack,
        decisions=_decisions(job, judgement, candidates, batch),
        forwards=job.oracle.forwards - forwards,
        backwards=job.oracle.backwards - backwards,
        seconds=time.perf_counter() - start,
        findings=flags.findings() + _left_the_ball(batch.ids, judgement, attack),
    )


def _decisions(
    job: Job, judgement: Judgement, candidates: Images, batch: Dataset
) -> list[Decision]:
    if job.oracle.randomized:
        one_draw = job.oracle.logits(candidates).argmax(dim=1) != batch.labels
        judgement = replace(judgement, broken=one_draw & ~judgement.outside)
    found = decisions(batch.ids, judgement)
    if not job.stores_images:
        return found
    return [
        one.model_copy(update={"image": packed(image)}) if one.broken or one.share else one
        for one, image in zip(found, candidates, strict=True)
    ]


def _left_the_ball(ids: Iterable[int], judgement: Judgement, attack: str) -> list[Finding]:
    outside = [example for example, out in zip(ids, judgement.outside.tolist(), strict=True) if out]
    if not outside:
        return []
    return [
        Finding(
            check="candidate-outside-ball",
            severity=Severity.INFO,
            message=f"{attack} returned {len(outside)} images outside the ball or the box; they do not count",
            value=float(len(outside)),
            examples=outside,
        )
    ]
