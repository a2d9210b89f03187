"""Attacks that call the defence themselves: a family's own, and those that a person brings.

They get the survivors batch by batch and give candidates back; every one is judged here, on the defence itself. Passes are
counted where the defence is called as a whole.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.core.ledger import Decision, Entry
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.engine.batches import in_batches
from robustbench_kd.engine.images import packed
from robustbench_kd.engine.job import Job, pending, worst
from robustbench_kd.engine.plan import Step
from robustbench_kd.engine.verify import decisions, judge
from robustbench_kd.tensors.contracts import Dataset, Images, Labels
from robustbench_kd.tensors.defence import Adversary
from robustbench_kd.tensors.oracle import is_out_of_memory


def entries(
    job: Job, position: int, ledger: list[Entry], *, make: Callable[..., Adversary], size: int
) -> Iterator[Entry]:
    """Yields what a stage without a surface decides, batch by batch; raises `ModelError` where the attack fails."""
    step, known, threat = job.steps[position], worst(job, position, ledger), job.threat
    try:
        adversary = make(job.oracle.model, norm=str(threat.norm), eps=threat.eps, seed=job.seed_of(step))
    except UsageError as error:  # not every attack knows every norm
        yield Entry(stage=step.name, findings=[_skipped(step.name, error)])
        adversary = _nothing
    yield from in_batches(pending(job, position, ledger), size, lambda rows: _attack(job, step, adversary, rows, known))


def _attack(job: Job, step: Step, adversary: Adversary, rows: list[int], known: dict[int, Decision]) -> Entry:
    start, forwards = time.perf_counter(), job.oracle.forwards
    batch = job.data.take(torch.tensor(rows))
    with _counted(job.oracle.model) as calls:
        candidates = _perturb(step.name, adversary, batch, job.oracle.device)
    judgement = judge(job.oracle, candidates, batch, job.threat)
    found = [
        _worse(known.get(decision.index), decision, "" if job.oracle.exact else packed(image))
        for decision, image in zip(decisions(batch.ids, judgement), candidates, strict=True)
    ]
    cost = job.oracle.forwards - forwards + sum(calls)
    return Entry(stage=step.name, decisions=found, forwards=cost, seconds=time.perf_counter() - start)


def _nothing(images: Images, labels: Labels) -> Images:  # noqa: ARG001  # stands where an attack stood
    return images


def _skipped(name: str, error: UsageError) -> Finding:
    return Finding(check="attack-skipped", severity=Severity.INFO, message=f"{name} did not run: {error}")


def _worse(before: Decision | None, found: Decision, image: str) -> Decision:
    """Returns the decision that more answers get wrong."""
    if before is not None and before.share >= found.share:
        return before
    return found.model_copy(update={"image": image})


def _perturb(name: str, adversary: Adversary, batch: Dataset, device: torch.device) -> Images:
    images = batch.images.to(device)
    try:
        candidates: object = adversary(images.clone(), batch.labels.to(device))
    except Exception as error:  # an attack is a person's own code and can raise anything
        if is_out_of_memory(error):
            raise
        first_line = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(f"attack '{name}' failed: {first_line}") from error
    if not isinstance(candidates, Tensor) or candidates.shape != images.shape:
        came = tuple(candidates.shape) if isinstance(candidates, Tensor) else type(candidates).__name__
        raise ModelError(f"attack '{name}': expected images of shape {tuple(images.shape)}, got {came}")
    return candidates.detach()


@contextmanager
def _counted(model: nn.Module) -> Iterator[list[int]]:
    """Collects the batch sizes of all calls of a model."""
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda _module, given: calls.append(len(given[0])))
    try:
        yield calls
    finally:
        handle.remove()
