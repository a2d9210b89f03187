"""Attacks that call the defence themselves: a family's own, and those that a person brings.

They get the survivors batch by batch and give candidates back; every one is judged here, on the
defence itself. Passes are counted where the defence is called, or a member of an ensemble; what an
attack asks in its place is not.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.core.ledger import Decision, Entry
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.engine.judging.judge import decisions, judge
from robustbench_kd.engine.judging.packing import packed
from robustbench_kd.engine.passes.batching import in_batches
from robustbench_kd.engine.passes.search import Spent
from robustbench_kd.engine.run.run import Job, pending, worst
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.contracts import Dataset, Images, Labels
from robustbench_kd.tensors.defence import Adversary, Mixture
from robustbench_kd.tensors.oracle import is_out_of_memory


def entries(
    job: Job, position: int, ledger: list[Entry], *, make: Callable[..., Adversary], size: int
) -> Iterator[Entry]:
    """Yields what a stage without a surface decides, batch by batch; raises `ModelError` where the attack fails."""
    step, known, threat = job.steps[position], worst(job, position, ledger), job.threat
    try:
        adversary = make(
            job.oracle.model, norm=str(threat.norm), eps=threat.eps, seed=job.seed_of(step)
        )
    except UsageError as error:  # not every attack knows every norm
        yield Entry(stage=step.name, findings=[_skipped(step.name, error)])
        adversary = _nothing
    yield from in_batches(
        pending(job, position, ledger),
        size,
        lambda rows: _attack(job, step, adversary, rows, known),
    )


def _attack(
    job: Job, step: Stage, adversary: Adversary, rows: list[int], known: dict[int, Decision]
) -> Entry:
    start, forwards = time.perf_counter(), job.oracle.forwards
    batch = job.data.take(torch.tensor(rows))
    with _counted(job.oracle.model) as spent:
        candidates = _perturb(step.name, adversary, batch, job.oracle.device)
    judgement = judge(job.oracle, candidates, batch, job.threat)
    found = [
        _worse(known.get(decision.index), decision, image if job.stores_images else None)
        for decision, image in zip(decisions(batch.ids, judgement), candidates, strict=True)
    ]
    return Entry(
        stage=step.name,
        decisions=found,
        forwards=job.oracle.forwards - forwards + spent.forwards,
        backwards=spent.backwards,
        seconds=time.perf_counter() - start,
    )


def _nothing(images: Images, labels: Labels) -> Images:  # noqa: ARG001  # stands where an attack stood
    return images


def _skipped(name: str, error: UsageError) -> Finding:
    return Finding(
        check="attack-skipped", severity=Severity.INFO, message=f"{name} did not run: {error}"
    )


def _worse(before: Decision | None, found: Decision, image: Tensor | None) -> Decision:
    """Returns the decision that more answers get wrong, a new one with its image if there is one."""
    if before is not None and before.share >= found.share:
        return before
    return (
        found
        if image is None or not found.share
        else found.model_copy(update={"image": packed(image)})
    )


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
        came = (
            tuple(candidates.shape) if isinstance(candidates, Tensor) else type(candidates).__name__
        )
        raise ModelError(
            f"attack '{name}': expected images of shape {tuple(images.shape)}, got {came}"
        )
    return candidates.detach()


@contextmanager
def _counted(model: nn.Module) -> Iterator[Spent]:
    """Counts the passes of all calls of a model, of an ensemble those of its members."""
    spent = Spent()

    def called(_module: nn.Module, _given: object, logits: Tensor) -> None:
        spent.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(returned)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def returned(gradient: Tensor) -> None:
        spent.backwards += len(gradient)

    counted = model.members() if isinstance(model, Mixture) else [model]
    handles = [one.register_forward_hook(called) for one in counted]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()
