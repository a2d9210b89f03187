"""One evaluation from a loaded defence to its record: resumes, runs the engine, writes everything.

The examples may be decided in parts: by shards, each in a process of its own, or chunk by chunk
until a claim is settled.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from robustbench_kd.core.engines import engine_traits
from robustbench_kd.core.errors import IncompleteError, UsageError
from robustbench_kd.core.ledger import Entry, Ledger, finished, unfinished
from robustbench_kd.core.records import Finding, RunRecord, Severity
from robustbench_kd.core.rundir import (
    ADVERSARIAL,
    JOB,
    LEDGER,
    RECORD,
    stored_record,
    write_interrupted,
    write_text,
)
from robustbench_kd.core.shards import Shard
from robustbench_kd.engine import clean_pass
from robustbench_kd.engine.autoattack.cascade import CHECKS
from robustbench_kd.engine.engines import open_engine
from robustbench_kd.engine.judging import rejection, rescore
from robustbench_kd.engine.passes.batch_size import batch_size
from robustbench_kd.engine.passes.batching import one_must_fit
from robustbench_kd.engine.passes.speedups import Speedups, search_model
from robustbench_kd.engine.probing.checkup import PROBES
from robustbench_kd.engine.probing.look import looked_at
from robustbench_kd.engine.probing.mismatch import CLEAN_CHECKS, clean_checks
from robustbench_kd.engine.probing.undeclared import first_logits
from robustbench_kd.engine.record import early_stop
from robustbench_kd.engine.record.build import adversarial_images, interrupted_record
from robustbench_kd.engine.record.header import RunHeader, header_of
from robustbench_kd.engine.record.merge import write_all
from robustbench_kd.engine.run.division import require_divisible, require_sequential
from robustbench_kd.engine.run.ledger_index import LedgerIndex
from robustbench_kd.engine.run.plan import Plan, make_plan
from robustbench_kd.engine.run.progress import Observer, Tracker, nobody
from robustbench_kd.engine.run.request import Request
from robustbench_kd.engine.run.run import CLEAN, SMALLER, Run
from robustbench_kd.engine.run.stages import with_search_model
from robustbench_kd.tensors import stored_images
from robustbench_kd.tensors.contracts import Classifier, Dataset
from robustbench_kd.tensors.meter import Meter
from robustbench_kd.tensors.oracle import Oracle, full_precision

_SAVING = "saving"  # marks a ledger whose decisions hold their images
_SPEEDUPS = "speedups"
_TRIAL_IMAGES = 256

Spread = Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    """A record and its folder.

    `stored` says that an earlier run had already answered, `again` that the earlier run lacked
    images or checks and was repeated.
    """

    record: RunRecord
    folder: Path
    stored: bool
    again: bool = False


class _SearchModel(NamedTuple):
    """What searches ask in place of the defence, and about how many images at once."""

    model: Classifier
    batch_size: int


def evaluate(
    request: Request,
    results: Path,
    *,
    observer: Observer = nobody,
    fresh: bool = False,
    spread: Spread | None = None,
) -> Outcome:
    """Evaluates a defence and writes its run directory under `results`; resumes an unfinished run.

    With `fresh`, earlier results of the same run are ignored; results without images are ignored
    where images are asked for, unchecked ones where the model is to be checked. An unfinished run
    that keeps its images goes on keeping them.
    `spread` is called in place of the engine where other processes decide: it returns once they
    have called `evaluate_shard` for every shard. Raises `ModelError` for a model that does not give
    finite logits for these images and labels, `RecordError` where results cannot be written,
    `IncompleteError` where memory ends. After an interruption the record says `interrupted` and the
    ledger keeps what was decided.
    """
    with full_precision():
        tracker = Tracker(observer)
        plan = _planned(request, tracker)
        folder = plan.folder(results)
        with Ledger(folder / LEDGER) as ledger:
            stored = None if fresh else stored_record(folder)
            if stored and _suffices(stored, request, folder):
                ledger.remove()
                return Outcome(stored, folder, stored=True)

            plan = _looked_or_interrupted(plan, ledger, folder)
            require_sequential(plan)
            if spread:
                require_divisible(plan)

            lacks_images = request.saves and not _saves_images(ledger)
            again = bool(stored or (lacks_images and ledger.entries)) and not fresh
            if fresh or lacks_images:
                ledger.clear()
            if request.saves and not ledger.entries:
                ledger.append(Entry(stage=_SAVING))

            record = _decided_record(plan, tracker, ledger, folder, spread)
            return Outcome(record, folder, stored=False, again=again)


def evaluate_shard(
    request: Request, results: Path, shard: Shard, *, observer: Observer = nobody
) -> Path:
    """Decides the examples of one shard into a ledger of its own; returns the folder of the run.

    It resumes an unfinished shard. Nothing else is written but what `merge` needs. A run that has
    its record already is left alone. Raises like `evaluate`, and `UsageError` where verdicts would
    depend on the division.
    """
    with full_precision():
        tracker = Tracker(observer)
        plan = _planned(request, tracker)
        folder = plan.folder(results)
        if stored_record(folder):
            return folder

        n = len(request.data)
        if shard.count > n:
            raise UsageError(f"expected at most {n} shards, as many as examples, got {shard.count}")
        with Ledger(folder / LEDGER, shard) as ledger:
            if finished(shard) in ledger.entries:
                return folder
            plan = looked_at(plan)
            require_divisible(plan)
            if request.saves and not _saves_images(ledger):
                raise UsageError(
                    "shards keep no images by themselves: leave --save-adversarial out, or use "
                    "--workers"
                )
            write_text(folder / JOB, header_of(plan).model_dump_json() + "\n")
            part = request.data.take(torch.tensor(shard.rows(n)))
            search = _search_model(plan, part)
            _decide(plan, tracker, ledger, part, search, first=shard.number == 1)
            ledger.append(finished(shard))
        return folder


def _suffices(stored: RunRecord, request: Request, folder: Path) -> bool:
    """Returns whether a stored result has the images and the checks that are asked for."""
    has_images = not request.saves or (folder / ADVERSARIAL).exists()
    return has_images and not (request.probes and stored.verdict == "unchecked")


def _planned(request: Request, tracker: Tracker) -> Plan:
    """Returns the plan of a request; the model answers once, so that its classes are known."""
    engine_traits(request.engine)  # refuses an unknown engine before the model is asked
    meter = Meter(tracker.tick)
    with one_must_fit():
        oracle = Oracle(request.subject.model, request.device, meter, seed=request.seed)
        oracle, logits = first_logits(oracle, request.data.images[:1], request.data.classes)
        classes = clean_pass.count_classes(oracle, logits, request.data)
    return make_plan(request, oracle, classes)


def _looked_or_interrupted(plan: Plan, ledger: Ledger, folder: Path) -> Plan:
    """Returns the plan after a look; where that is interrupted, the record says so."""
    try:
        return looked_at(plan)
    except KeyboardInterrupt:
        write_interrupted(folder, interrupted_record(header_of(plan), ledger.entries))
        raise


def _decided_record(
    plan: Plan, tracker: Tracker, ledger: Ledger, folder: Path, spread: Spread | None
) -> RunRecord:
    """Returns the record after all examples are decided, here or by the processes of `spread`."""
    header = header_of(plan)
    try:
        if spread:
            # A shard of a run that has its record is left alone.
            (folder / RECORD).unlink(missing_ok=True)
            with ledger.lent():
                spread()
        elif unfinished(ledger.entries):
            header = _decide_enough(plan, header, tracker, ledger)
    except (KeyboardInterrupt, IncompleteError):
        write_interrupted(folder, interrupted_record(header, ledger.entries))
        raise
    except Exception:
        if ledger.entries:  # a model can fail in the middle of a run
            write_interrupted(folder, interrupted_record(header, ledger.entries))
        raise

    if _saves_images(ledger):
        images = adversarial_images(header, plan.request.data, ledger.entries)
        stored_images.write(folder / ADVERSARIAL, images)
    else:
        (folder / ADVERSARIAL).unlink(missing_ok=True)  # of an earlier evaluation
    return write_all(header, ledger, folder)


def _decide_enough(plan: Plan, header: RunHeader, tracker: Tracker, ledger: Ledger) -> RunHeader:
    """Decides all examples, or as many as settle a claim, and returns the header of these."""
    request = plan.request
    search = _search_model(plan, request.data)
    if request.at_least is None:
        _decide(plan, tracker, ledger, request.data, search, first=True)
        return header

    seen: set[int] = set()
    for rows in early_stop.chunks(request.data, request.seed):
        chunk = request.data.take(rows)
        _decide(plan, tracker, ledger, chunk, search, first=not seen)
        seen.update(chunk.ids)
        settled = early_stop.settled(header, seen, ledger.entries, request.at_least)
        if settled:
            return settled
    raise AssertionError("all examples together settle every claim")


def _decide(
    plan: Plan,
    tracker: Tracker,
    ledger: Ledger,
    data: Dataset,
    search: _SearchModel,
    *,
    first: bool,
) -> None:
    """Decides some examples into the ledger; with the `first` ones the model is checked."""
    logits, clean = clean_pass.clean_pass(plan.oracle, data, plan.request.threat, search.batch_size)
    run = Run(
        plan=plan,
        data=data,
        logits=logits,
        stages=with_search_model(plan.stages, plan.oracle, search.model),
        batch_size=search.batch_size,
        tracker=tracker,
        index=LedgerIndex(ledger.entries),
        saves_images=_saves_images(ledger),
    )
    for entry in _entries(run, clean, first=first):
        ledger.append(entry)

    notes = getattr(search.model, "notes", ())  # some show only at the first pass
    if notes:
        findings = [_left_out(note) for note in notes]
        ledger.append(Entry(stage=_SPEEDUPS, findings=findings))


def _entries(run: Run, clean: list[Entry], *, first: bool) -> Iterator[Entry]:
    """Yields everything that is decided in its order, unless the ledger holds it already."""
    index = run.index
    request = run.plan.request
    if not index.decisions(CLEAN).keys() >= set(run.data.ids):
        yield from clean
    if request.smaller and not index.entries(SMALLER):
        yield clean_pass.smaller_radius(request.smaller, with_images=run.saves_images)
    if first:
        yield from _checks(run)

    yield from open_engine(request.engine).attack(run)
    yield from rescore.entries(run)
    yield from rejection.entries(run)


def _checks(run: Run) -> Iterator[Entry]:
    """Yields what checks find on all images of the request, unless the ledger holds it already.

    Clean answers are looked at in every evaluation, the model only where probes are asked for.
    """
    index = run.index
    request = run.plan.request
    looks_at_answers = not index.entries(CLEAN_CHECKS)
    probes = request.probes and not (index.entries(CHECKS) or index.entries(PROBES))
    if not (looks_at_answers or probes):
        return

    if len(run.data) < len(request.data):
        logits, _ = clean_pass.clean_pass(run.oracle, request.data, request.threat, run.batch_size)
        run = replace(run, data=request.data, logits=logits)
    if looks_at_answers:
        yield clean_checks(run.oracle, run.logits, run.data, request.subject.normalisation)
    if probes:
        yield open_engine(request.engine).check_model(run)


def _saves_images(ledger: Ledger) -> bool:
    """Returns whether the decisions of a ledger hold their images: all do, or none does."""
    return any(entry.stage == _SAVING for entry in ledger.entries)


def _search_model(plan: Plan, data: Dataset) -> _SearchModel:
    """Returns the batch size, and the model that searches ask in place of the defence."""
    request = plan.request
    model = plan.oracle.model
    speedups = request.speedups
    device = request.device
    trial = data.images[:_TRIAL_IMAGES]
    with one_must_fit():
        if speedups == Speedups():
            size = request.batch_size or batch_size(plan.oracle, trial, device, most=len(data))
            return _SearchModel(model, size)

        probe = data.images[:4]
        eager = search_model(model, device, replace(speedups, compile=False), size=0, probe=probe)
        size = request.batch_size or batch_size(eager, trial, device, most=len(data))
        if not speedups.compile:
            return _SearchModel(eager, size)
        compiled = search_model(model, device, speedups, size=size, probe=probe)
        return _SearchModel(compiled, size)


def _left_out(note: str) -> Finding:
    return Finding(check="lever-left-out", severity=Severity.INFO, message=note)
