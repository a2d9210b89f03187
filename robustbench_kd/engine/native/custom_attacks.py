"""Attacks that call the defence themselves: a family's own, and those that a person brings.

They get the survivors batch by batch and return candidates; every candidate is judged here, on the
defence itself. Passes of the defence or of the members of an ensemble are counted; what an attack
asks in their place is not.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.core.ledger import Decision, Entry
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.engine.judging.judge import decisions, judge
from robustbench_kd.engine.judging.packing import pack
from robustbench_kd.engine.passes.batching import in_batches
from robustbench_kd.engine.passes.meter import EntryClock
from robustbench_kd.engine.run.run import Run
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.contracts import Dataset, Images, Labels
from robustbench_kd.tensors.defence import Adversary, Mixture
from robustbench_kd.tensors.meter import Meter
from robustbench_kd.tensors.oracle import guarded


def entries(
    run: Run, stage: Stage, make: Callable[..., Adversary], *, batch_size: int
) -> Iterator[Entry]:
    """Yields what a stage of such an attack decides, batch by batch.

    Raises `ModelError` where the attack fails.
    """
    worst = run.worst_before(stage)
    try:
        with guarded(f"attack '{stage.name}' cannot be made"):
            adversary = make(
                run.oracle.model,
                norm=str(run.threat.norm),
                eps=run.threat.eps,
                seed=run.seed_of(stage),
            )
    except UsageError as error:  # not every attack knows every norm
        yield Entry(stage=stage.name, findings=[_skipped(stage.name, error)])
        adversary = _no_attack

    def attack(rows: list[int]) -> Entry:
        return _attacked(run, stage, adversary, rows, worst)

    yield from in_batches(run.pending(stage), batch_size, attack)


def _attacked(
    run: Run, stage: Stage, adversary: Adversary, rows: list[int], worst: Mapping[int, Decision]
) -> Entry:
    clock = EntryClock(run.oracle.meter)
    batch = run.data.take(torch.tensor(rows))
    with _counted(run.oracle.model, run.oracle.meter):
        candidates = _candidates(stage.name, adversary, batch, run.oracle.device)

    judgement = judge(run.oracle, candidates, batch, run.threat)
    found = []
    for decision, image in zip(decisions(batch.ids, judgement), candidates, strict=True):
        kept_image = image if run.stores_images else None
        found.append(_worse(worst.get(decision.index), decision, kept_image))
    return clock.entry(stage.name, found)


def _no_attack(images: Images, labels: Labels) -> Images:  # noqa: ARG001  # replaces an attack
    return images


def _skipped(name: str, error: UsageError) -> Finding:
    message = f"{name} did not run: {error}"
    return Finding(check="attack-skipped", severity=Severity.INFO, message=message)


def _worse(before: Decision | None, found: Decision, image: Tensor | None) -> Decision:
    """Returns the decision with the higher error rate, a new one with its image if it is kept."""
    if before is not None and before.error_rate >= found.error_rate:
        return before
    if image is None or not found.error_rate:
        return found
    return found.model_copy(update={"image": pack(image)})


def _candidates(name: str, adversary: Adversary, batch: Dataset, device: torch.device) -> Images:
    images = batch.images.to(device)
    with guarded(f"attack '{name}' failed"):
        candidates: object = adversary(images.clone(), batch.labels.to(device))

    if not isinstance(candidates, Tensor):
        raise _wrong_candidates(name, images, type(candidates).__name__)
    if candidates.shape != images.shape:
        raise _wrong_candidates(name, images, str(tuple(candidates.shape)))
    return candidates.detach()


def _wrong_candidates(name: str, images: Images, came: str) -> ModelError:
    expected = tuple(images.shape)
    return ModelError(f"attack '{name}': expected images of shape {expected}, got {came}")


@contextmanager
def _counted(model: nn.Module, meter: Meter) -> Iterator[None]:
    """Counts the passes of all calls of a model, or of the members of an ensemble."""

    def count(_module: nn.Module, _arguments: object, logits: Tensor) -> None:
        meter.add_call(logits, len(logits))

    networks = model.members() if isinstance(model, Mixture) else [model]
    handles = [network.register_forward_hook(count) for network in networks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
