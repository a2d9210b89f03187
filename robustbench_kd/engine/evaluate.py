"""One evaluation from a loaded defence to its record: resumes, runs the engine, writes everything down.

The examples may be decided in parts: by shards, each in a process of its own, or chunk by chunk
until a claim is settled.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from robustbench_kd.core.errors import IncompleteError, UsageError, unknown_name
from robustbench_kd.core.ledger import Entry, Ledger, finished, unfinished
from robustbench_kd.core.records import Finding, RunRecord, Severity
from robustbench_kd.core.rundir import (
    ADVERSARIAL,
    JOB,
    LEDGER,
    stored_record,
    write_interrupted,
    write_text,
)
from robustbench_kd.core.shards import Shard
from robustbench_kd.core.suites import Suite
from robustbench_kd.engine import clean_pass as preflight
from robustbench_kd.engine.autoattack import cascade as reference
from robustbench_kd.engine.judging import rejection as detection
from robustbench_kd.engine.judging import rescore as scoring
from robustbench_kd.engine.native import cascade as native
from robustbench_kd.engine.passes.batch_size import batch_size
from robustbench_kd.engine.passes.batching import one_must_fit
from robustbench_kd.engine.passes.speedups import Speedups, searched
from robustbench_kd.engine.record import early_stop as sequential
from robustbench_kd.engine.record.build import RunHeader, adversarial, summarise, summary_of
from robustbench_kd.engine.record.merge import write_all
from robustbench_kd.engine.run.plan import question
from robustbench_kd.engine.run.progress import Observer, Tracker, nobody
from robustbench_kd.engine.run.request import Request
from robustbench_kd.engine.run.run import Job
from robustbench_kd.engine.run.stages import plan
from robustbench_kd.tensors import stored_images
from robustbench_kd.tensors.contracts import Classifier, Dataset
from robustbench_kd.tensors.oracle import Oracle, full_precision

_SAVING = "saving"  # the mark of a ledger whose decisions hold their images
_LEVERS = "levers"
ENGINES = {"autoattack": reference.entries, "native": native.entries}
CHECKS = {"autoattack": preflight.package_checks, "native": preflight.probes}
Spread = Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    """A record and its folder; `stored` where an earlier run had already answered, `again` where it lacked images."""

    record: RunRecord
    folder: Path
    stored: bool
    again: bool = False


@dataclass(frozen=True)
class _Run:
    """A request made ready: the model has answered once, so that it is known which attacks run and where results go."""

    request: Request
    suite: Suite
    oracle: Oracle
    tracker: Tracker
    summary: RunHeader
    folder: Path


def evaluate(
    request: Request,
    results: Path,
    *,
    observer: Observer = nobody,
    fresh: bool = False,
    spread: Spread | None = None,
) -> Outcome:
    """Evaluates a defence and writes its run directory under `results`; an unfinished run is resumed.

    With `fresh`, earlier results of the same question are ignored, and where images are asked for,
    those that lack them. An unfinished run that keeps its images goes on keeping them. `spread` is
    called in place of the engine where others decide: it returns once they have called
    `evaluate_shard` for every shard. Raises `ModelError` for a model that does not give finite
    logits for these images and labels, `RecordError` where results cannot be written,
    `IncompleteError` where memory ends. On an interruption the record says `interrupted` and the
    ledger keeps what was decided.
    """
    with full_precision():
        run = _ready(request, results, observer)
        _check_sequential(run)
        if spread:
            _check_divisible(run)
        with Ledger(run.folder / LEDGER) as ledger:
            stored = None if fresh else stored_record(run.folder)
            lacking = request.saves and not _saving(ledger.entries)
            if stored and (not request.saves or (run.folder / ADVERSARIAL).exists()):
                ledger.remove()
                return Outcome(stored, run.folder, stored=True)
            again = lacking and not fresh and bool(stored or ledger.entries)
            if fresh or lacking:
                ledger.clear()
            if request.saves and not ledger.entries:
                ledger.append(Entry(stage=_SAVING))
            return Outcome(_run(run, ledger, spread), run.folder, stored=False, again=again)


def evaluate_shard(
    request: Request, results: Path, shard: Shard, *, observer: Observer = nobody
) -> Path:
    """Decides the examples of one shard into a ledger of its own, and resumes that; returns the folder of the run.

    Nothing else is written but what `merge` needs. A run that has its record already is left alone.
    Raises like `evaluate`, and `UsageError` where verdicts would depend on the division.
    """
    with full_precision():
        run = _ready(request, results, observer)
        _check_divisible(run)
        if stored_record(run.folder):
            return run.folder
        if shard.count > len(request.data):
            raise UsageError(
                f"expected at most {len(request.data)} shards, as many as examples, got {shard.count}"
            )
        with Ledger(run.folder / LEDGER, shard) as ledger:
            if request.saves and not _saving(ledger.entries):
                raise UsageError(
                    "shards keep no images by themselves: leave --save-adversarial out, or use --workers"
                )
            write_text(run.folder / JOB, run.summary.model_dump_json() + "\n")
            if finished(shard) not in ledger.entries:
                part = request.data.take(torch.tensor(shard.rows(len(request.data))))
                _decide(
                    run,
                    ledger,
                    part,
                    _faster(replace(run.request, data=part), run.oracle),
                    first=shard.number == 1,
                )
                ledger.append(finished(shard))
        return run.folder


def _ready(request: Request, results: Path, observer: Observer) -> _Run:
    if request.engine not in ENGINES:
        raise unknown_name("engine", request.engine, ENGINES)
    tracker = Tracker(observer)
    oracle = _oracle(request, tracker)
    asked = question(request, oracle, _classes(oracle, request.data))
    said = [*_said(oracle), *_changed(asked.changes)]
    summary = summary_of(asked.identity, asked.request, oracle, asked.steps, said)
    return _Run(asked.request, asked.suite, oracle, tracker, summary, asked.folder(results))


def _check_sequential(run: _Run) -> None:
    if run.request.at_least is None:
        return
    if run.oracle.randomized:
        raise UsageError(
            "--until-decided counts examples, but the defence answers by chance: evaluate all of them"
        )
    if run.request.smaller:
        raise UsageError(
            "--until-decided is for one radius, not for a curve: give each by a --threat of its own"
        )
    if run.suite.mode == "fast":
        raise UsageError("--until-decided and --mode fast both take samples: use one of them")


def _check_divisible(run: _Run) -> None:
    """Raises `UsageError` where what becomes of an example depends on the others of its run."""
    if run.request.engine == "autoattack":
        raise UsageError(
            "the AutoAttack package's verdicts depend on which images share a batch: use --engine native"
        )
    if run.suite.mode == "fast":
        raise UsageError(
            "--mode fast samples among all survivors, which no part of them knows: use --mode exact"
        )
    if run.request.at_least is not None:
        raise UsageError(
            "--until-decided stops where examples taken one after the other say so: use one worker"
        )


def _oracle(request: Request, tracker: Tracker) -> Oracle:
    with one_must_fit():
        oracle = Oracle(
            request.subject.model,
            request.device,
            lambda: tracker.tick(oracle.forwards + oracle.backwards),
            seed=request.seed,
        )
    return oracle


def _run(run: _Run, ledger: Ledger, spread: Spread | None) -> RunRecord:
    about = run.summary
    try:
        if spread:
            with ledger.lent():
                spread()
        elif unfinished(ledger.entries):
            about = _decide_enough(run, ledger)
    except (KeyboardInterrupt, IncompleteError):
        write_interrupted(run.folder, summarise(about, ledger.entries, complete=False))
        raise
    if _saving(ledger.entries):
        images = adversarial(about, run.request.data, ledger.entries)
        stored_images.write(run.folder / ADVERSARIAL, images)
    else:
        (run.folder / ADVERSARIAL).unlink(missing_ok=True)  # of an earlier evaluation
    return write_all(about, ledger, run.folder)


def _decide_enough(run: _Run, ledger: Ledger) -> RunHeader:
    """Decides all examples, or so many as settle a claim, and returns the summary of these."""
    request, seen = run.request, set[int]()
    faster = _faster(request, run.oracle)
    if request.at_least is None:
        _decide(run, ledger, request.data, faster, first=True)
        return run.summary
    for rows in sequential.chunks(request.data, request.seed):
        chunk = request.data.take(rows)
        _decide(run, ledger, chunk, faster, first=not seen)
        seen.update(chunk.ids)
        if about := sequential.settled(run.summary, seen, ledger.entries, request.at_least):
            return about
    raise AssertionError("all examples together settle every claim")


def _decide(
    run: _Run, ledger: Ledger, data: Dataset, faster: tuple[int, Classifier], *, first: bool
) -> None:
    """Runs everything on some examples into the ledger; those who come `first` check the model for all."""
    request, oracle = run.request, run.oracle
    size, ask = faster
    logits, clean = preflight.clean_pass(oracle, data, request.threat, size)
    job = Job(
        oracle=oracle,
        data=data,
        threat=request.threat,
        suite=run.suite,
        steps=plan(run.suite, oracle, request.threat, request.extra, ask=ask),
        logits=logits,
        seed=request.seed,
        batch_size=size,
        tracker=run.tracker,
        speedups=request.speedups,
        saves=_saving(ledger.entries),
    )
    checks = _checks(request) if first and request.probes else None
    opening = preflight.entries(job, ledger.entries, clean, request.smaller, checks)
    attacks = ENGINES[request.engine](job, ledger.entries)
    last = scoring.entries(job, ledger.entries), detection.entries(job, ledger.entries)
    for entry in chain(opening, attacks, *last):
        ledger.append(entry)
    # Some show only at the first pass.
    notes = [_left_out(note) for note in getattr(ask, "notes", ())]
    if notes:
        ledger.append(Entry(stage=_LEVERS, findings=notes))


def _checks(request: Request) -> Callable[[Job], Entry]:
    """Returns the checks of the model, on images of the whole data set however few of them a job has."""

    def check(job: Job) -> Entry:
        if len(job.data) < len(request.data):
            logits, _ = preflight.clean_pass(
                job.oracle, request.data, request.threat, job.batch_size
            )
            job = replace(job, data=request.data, logits=logits)
        return CHECKS[request.engine](job)

    return check


def _saving(entries: list[Entry]) -> bool:
    """Tells whether the decisions of a ledger hold their images: they all do, or none does."""
    return any(entry.stage == _SAVING for entry in entries)


def _faster(request: Request, oracle: Oracle) -> tuple[int, Classifier]:
    """Returns the batch size, and what the search asks in the model's place."""
    images, device, speedups = request.data.images, request.device, request.speedups
    with one_must_fit():
        if speedups == Speedups():
            return request.batch_size or batch_size(
                oracle, images[:256], device, most=len(images)
            ), oracle.model
        ask = partial(searched, oracle.model, device, probe=images[:4])
        eager = ask(replace(speedups, compile=False), size=0)
        size = request.batch_size or batch_size(eager, images[:256], device, most=len(images))
        return size, ask(speedups, size=size) if speedups.compile else eager


def _left_out(note: str) -> Finding:
    return Finding(check="lever-left-out", severity=Severity.INFO, message=note)


def _classes(oracle: Oracle, data: Dataset) -> int:
    """Returns the number of classes that the model tells apart, from one image."""
    with one_must_fit():
        return preflight.classes(oracle, oracle.logits(data.images[:1]), data)


def _said(oracle: Oracle) -> list[Finding]:
    if not oracle.was_training:
        return []
    message = "the model was left in training mode; it was put in evaluation mode"
    advice = (
        "call .eval() in the factory, if dropout or batch statistics are not part of the defence"
    )
    return [Finding(check="training-mode", severity=Severity.INFO, message=message, advice=advice)]


def _changed(changes: list[str]) -> list[Finding]:
    advice = "with so few classes the number is not the standard protocol's"
    return [
        Finding(check="attack-undefined", severity=Severity.INFO, message=change, advice=advice)
        for change in changes
    ]
