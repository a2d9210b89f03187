"""One evaluation from a loaded defence to its record: resumes, runs the engine, writes everything down."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from robustbench_kd.core.errors import IncompleteError, ModelError, unknown_name
from robustbench_kd.core.ledger import Ledger
from robustbench_kd.core.records import Finding, RunRecord, Severity
from robustbench_kd.core.rundir import LEDGER, run_folder, stored_record, write_interrupted, write_record
from robustbench_kd.core.suites import Suite, for_classes
from robustbench_kd.engine import detection, native, preflight, reference, scoring
from robustbench_kd.engine.batches import one_must_fit
from robustbench_kd.engine.identity import environment, identify
from robustbench_kd.engine.job import Job
from robustbench_kd.engine.levers import Levers, searched
from robustbench_kd.engine.plan import plan
from robustbench_kd.engine.progress import Observer, Tracker, nobody
from robustbench_kd.engine.request import Request
from robustbench_kd.engine.summary import Summary, draw_rows, example_rows, summarise
from robustbench_kd.engine.tuning import batch_size
from robustbench_kd.tensors.contracts import Classifier, Dataset
from robustbench_kd.tensors.oracle import Oracle, full_precision

ENGINES = {"autoattack": reference.entries, "native": native.entries}
CHECKS = {"autoattack": preflight.package_checks, "native": preflight.probes}


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
    if request.engine not in ENGINES:
        raise unknown_name("engine", request.engine, ENGINES)
    with full_precision():
        tracker = Tracker(observer)
        oracle = _oracle(request, tracker)
        classes = _probe(oracle, request.data)
        request = replace(request, levers=Levers()) if oracle.randomized else request
        suite, changes = for_classes(request.suite, classes)
        steps = plan(suite, oracle, request.threat, request.extra)
        identity = identify(request, suite, steps)
        folder = run_folder(results, identity.model, identity.run_id())
        with Ledger(folder / LEDGER) as ledger:
            stored = None if fresh else stored_record(folder)
            if stored:
                ledger.remove()
                return Outcome(stored, folder, stored=True)
            if fresh:
                ledger.clear()
            where, size = environment(request.device), request.subject.parameters
            summary = Summary(identity, request.data, steps, size, where, oracle)
            findings = [*_said(oracle), *_changed(changes)]
            decide = partial(_decide, request, suite, oracle, tracker, ledger=ledger, findings=findings)
            return Outcome(_run(decide, ledger, summary, folder, findings), folder, stored=False)


def _oracle(request: Request, tracker: Tracker) -> Oracle:
    with one_must_fit():
        oracle = Oracle(
            request.subject.model,
            request.device,
            lambda: tracker.tick(oracle.forwards + oracle.backwards),
            seed=request.seed,
        )
    return oracle


def _run(
    decide: Callable[[], None], ledger: Ledger, summary: Summary, folder: Path, findings: list[Finding]
) -> RunRecord:
    try:
        decide()
    except (KeyboardInterrupt, IncompleteError):
        write_interrupted(folder, summarise(summary, ledger.entries, findings, complete=False))
        raise
    record = summarise(summary, ledger.entries, findings, complete=True)
    entries = ledger.entries
    write_record(folder, record, example_rows(summary, entries), draw_rows(summary, entries))
    ledger.remove()
    return record


def _decide(
    request: Request, suite: Suite, oracle: Oracle, tracker: Tracker, *, ledger: Ledger, findings: list[Finding]
) -> None:
    """Runs everything into the ledger; `findings` grow by the levers that did not suit the model."""
    size, ask = _faster(request, oracle)
    logits, clean = preflight.clean_pass(oracle, request.data, request.threat, size)
    job = Job(
        oracle=oracle,
        data=request.data,
        threat=request.threat,
        suite=suite,
        steps=plan(suite, oracle, request.threat, request.extra, ask=ask),
        logits=logits,
        seed=request.seed,
        batch_size=size,
        tracker=tracker,
        levers=request.levers,
    )
    checks = CHECKS[request.engine] if request.probes else None
    first = preflight.entries(job, ledger.entries, clean, request.smaller, checks)
    attacks = ENGINES[request.engine](job, ledger.entries)
    last = scoring.entries(job, ledger.entries), detection.entries(job, ledger.entries)
    for entry in chain(first, attacks, *last):
        ledger.append(entry)
    findings += [_left_out(note) for note in getattr(ask, "notes", ())]  # some show only at the first pass


def _faster(request: Request, oracle: Oracle) -> tuple[int, Classifier]:
    """Returns the batch size, and what the search asks in the model's place."""
    images, device, size = request.data.images, request.device, request.batch_size
    probe, plain = images[:4], request.levers == Levers()
    with one_must_fit():
        if size == 0:
            eager = replace(request.levers, compile=False)
            tried = oracle if plain else searched(oracle.model, device, eager, size=0, probe=probe)
            size = batch_size(tried, images[:256], device, most=len(images))
        return size, oracle.model if plain else searched(oracle.model, device, request.levers, size=size, probe=probe)


def _left_out(note: str) -> Finding:
    return Finding(check="lever-left-out", severity=Severity.INFO, message=note)


def _probe(oracle: Oracle, data: Dataset) -> int:
    """Returns the number of classes the model tells apart, from one image; raises `ModelError` if labels exceed it."""
    with one_must_fit():
        classes = oracle.logits(data.images[:1]).shape[1] - oracle.abstains
    highest = int(data.labels.max())
    if highest >= classes:
        raise ModelError(
            f"the model tells {classes} classes apart, but label {highest} occurs in '{data.name}': choose the data set "
            "it was trained on"
        )
    return classes


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
