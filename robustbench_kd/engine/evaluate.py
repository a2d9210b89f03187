"""One evaluation from a loaded defence to its record: resumes, runs the engine, writes everything down."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import torch

from robustbench_kd.checkpoints.target import Subject
from robustbench_kd.core.errors import IncompleteError, ModelError, unknown_name
from robustbench_kd.core.ledger import Ledger
from robustbench_kd.core.records import Finding, Identity, RunRecord, Severity
from robustbench_kd.core.rundir import LEDGER, run_folder, stored_record, write_interrupted, write_record
from robustbench_kd.core.suites import Suite, for_classes
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine import autoattack, native, preflight, reference
from robustbench_kd.engine.batches import one_must_fit
from robustbench_kd.engine.job import Job
from robustbench_kd.engine.progress import Observer, Tracker, nobody
from robustbench_kd.engine.summary import Summary, example_rows, summarise
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.oracle import Oracle, full_precision

ENGINES = {"autoattack": reference.entries, "native": native.entries}


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, and how."""

    subject: Subject
    data: Dataset
    threat: Threat
    suite: Suite
    device: torch.device
    seed: int = 0
    batch_size: int = 250
    engine: str = "autoattack"


@dataclass(frozen=True)
class Outcome:
    """A record and its folder; `stored` where an earlier run had already answered."""

    record: RunRecord
    folder: Path
    stored: bool


def evaluate(request: Request, results: Path, *, observer: Observer = nobody, fresh: bool = False) -> Outcome:
    """Evaluates a defence and writes its run directory under `results`; an unfinished run is resumed.

    With `fresh`, earlier results of the same question are ignored. Raises `ModelError` for a model that does not give
    finite logits for these images and labels, `RecordError` where results cannot be written, `IncompleteError` where
    memory ends. On an interruption the record says `interrupted` and the ledger keeps what was decided.
    """
    with full_precision():
        tracker = Tracker(observer)
        with one_must_fit():
            oracle = Oracle(
                request.subject.model, request.device, lambda: tracker.tick(oracle.forwards + oracle.backwards)
            )
            classes = _probe(oracle, request.data)
        suite, changes = for_classes(request.suite, classes)
        identity = _identity(request, suite)
        folder = run_folder(results, identity.model, identity.run_id())
        with Ledger(folder / LEDGER) as ledger:
            stored = None if fresh else stored_record(folder)
            if stored:
                ledger.remove()
                return Outcome(stored, folder, stored=True)
            if fresh:
                ledger.clear()
            summary = Summary(identity, request.data, request.subject.parameters, _environment(request.device))
            findings = [*_said(oracle), *_changed(changes)]
            record = _run(lambda: _decide(request, suite, oracle, tracker, ledger), ledger, summary, folder, findings)
            return Outcome(record, folder, stored=False)


def _run(
    decide: Callable[[], None], ledger: Ledger, summary: Summary, folder: Path, findings: list[Finding]
) -> RunRecord:
    try:
        decide()
    except (KeyboardInterrupt, IncompleteError):
        write_interrupted(folder, summarise(summary, ledger.entries, findings, complete=False))
        raise
    record = summarise(summary, ledger.entries, findings, complete=True)
    write_record(folder, record, example_rows(summary, ledger.entries))
    ledger.remove()
    return record


def _decide(request: Request, suite: Suite, oracle: Oracle, tracker: Tracker, ledger: Ledger) -> None:
    data, threat = request.data, request.threat
    logits, clean = preflight.clean_pass(oracle, data, threat, request.batch_size)
    job = Job(
        oracle=oracle,
        data=data,
        threat=threat,
        suite=suite,
        logits=logits,
        seed=request.seed,
        batch_size=request.batch_size,
        tracker=tracker,
    )
    for entry in chain(preflight.entries(job, ledger.entries, clean), ENGINES[request.engine](job, ledger.entries)):
        ledger.append(entry)


def _probe(oracle: Oracle, data: Dataset) -> int:
    """Returns the number of classes the model tells apart, from one image; raises `ModelError` if labels exceed it."""
    classes = oracle.logits(data.images[:1]).shape[1]
    highest = int(data.labels.max())
    if highest >= classes:
        raise ModelError(
            f"the model tells {classes} classes apart, but label {highest} occurs in '{data.name}': choose the data set "
            "it was trained on"
        )
    return classes


def _identity(request: Request, suite: Suite) -> Identity:
    if request.engine not in ENGINES:
        raise unknown_name("engine", request.engine, ENGINES)
    subject, data = request.subject, request.data
    own = {"robustbench-kd": importlib.metadata.version("robustbench-kd"), "torch": torch.__version__}
    return Identity(
        model=subject.name,
        family=subject.family,
        architecture=subject.architecture,
        normalisation=str(subject.normalisation or "none"),
        checkpoint_sha256=subject.checkpoint_sha256,
        code_sha256=subject.code_sha256,
        dataset=data.name,
        data_fingerprint=data.fingerprint(),
        examples=len(data),
        norm=str(request.threat.norm),
        eps=request.threat.eps,
        eps_text=request.threat.eps_text,
        suite=suite.name,
        attacks=list(suite.attacks),
        engine=request.engine,
        seed=request.seed,
        batch_size=0 if request.engine == "native" else request.batch_size,  # native verdicts do not depend on it
        device=request.device.type,
        versions=own | autoattack.versions(),
    )


def _said(oracle: Oracle) -> list[Finding]:
    if not oracle.was_training:
        return []
    message = "the model was left in training mode; it was put in evaluation mode"
    advice = "call .eval() in the factory, if dropout or batch statistics are not part of the defence"
    return [Finding(check="training-mode", severity=Severity.INFO, message=message, advice=advice)]


def _changed(changes: list[str]) -> list[Finding]:
    advice = "with so few classes the number is not the standard protocol's"
    return [
        Finding(check="attack-undefined", severity=Severity.INFO, message=change, advice=advice) for change in changes
    ]


def _environment(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.system(),
        "device_name": name,
        "threads": str(torch.get_num_threads()),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str:
    """Returns the commit of the checkout this package runs from, empty for an installed one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "rev-parse", "HEAD"]
        environment = os.environ | {"GIT_DIR": str(root / ".git")}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603  # a constant command
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.strip()
