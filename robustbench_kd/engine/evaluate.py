"""One evaluation from a loaded defence to its record: resumes, runs the engine, writes everything.

The examples may be decided in parts: by shards, each in a process of its own, or chunk by chunk
until a claim is settled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from robustbench_kd.core.agreement import stored_record
from robustbench_kd.core.engines import engine_traits
from robustbench_kd.core.errors import IncompleteError, RecordError, UsageError
from robustbench_kd.core.ledger import Entry, Ledger, finished, unfinished
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rundir import (
    ADVERSARIAL,
    LEDGER,
    RECORD,
    write_interrupted,
)
from robustbench_kd.core.shards import Shard
from robustbench_kd.core.verdicts import is_unchecked
from robustbench_kd.engine import clean_pass
from robustbench_kd.engine.decide import (
    SAVING,
    choose_search_model,
    decide,
    lacks_checks,
    saves_images,
)
from robustbench_kd.engine.passes.batching import one_must_fit
from robustbench_kd.engine.probing.look import looked_at
from robustbench_kd.engine.probing.undeclared import first_logits
from robustbench_kd.engine.record import early_stop
from robustbench_kd.engine.record.build import adversarial_images, interrupted_record
from robustbench_kd.engine.record.header import RunHeader, header_of, read_header, write_header
from robustbench_kd.engine.record.merge import remove_ledgers, write_all
from robustbench_kd.engine.run.division import require_divisible, require_sequential
from robustbench_kd.engine.run.ledger_index import LedgerIndex
from robustbench_kd.engine.run.plan import Plan, make_plan
from robustbench_kd.engine.run.progress import Observer, Tracker, nobody
from robustbench_kd.engine.run.request import Request
from robustbench_kd.tensors import stored_images
from robustbench_kd.tensors.meter import Meter
from robustbench_kd.tensors.oracle import Oracle, full_precision

Spread = Callable[[], None]


def silent(_text: str) -> None:
    """Says nothing."""


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


def evaluate(
    request: Request,
    results: Path,
    *,
    observer: Observer = nobody,
    fresh: bool = False,
    spread: Spread | None = None,
    say: Callable[[str], None] = silent,
) -> Outcome:
    """Evaluates a defence and writes its run directory under `results`; resumes an unfinished run.

    With `fresh`, earlier results of the same run are ignored; results without images are ignored
    where images are asked for, unchecked ones where the model is to be checked. An unfinished run
    that keeps its images goes on keeping them.
    `spread` is called in place of the engine where other processes decide: it returns once they
    have called `evaluate_shard` for every shard. `say` is called with what is damaged in an
    unfinished run. Raises `ModelError` for a model that does not give
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
                remove_ledgers(ledger, folder)
                return Outcome(stored, folder, stored=True)

            for text in ledger.damage:
                say(text)
            plan = _looked_or_interrupted(plan, ledger, folder)
            require_sequential(plan)
            if spread:
                require_divisible(plan)

            lacks_images = request.saves and not saves_images(ledger)
            again = bool(stored or (lacks_images and ledger.entries)) and not fresh
            if fresh or lacks_images:
                ledger.clear()
            if request.saves and not ledger.entries:
                ledger.append(Entry(stage=SAVING))

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
            if _is_done(plan, ledger, shard, folder):
                return folder
            plan = looked_at(plan)
            require_divisible(plan)
            if request.saves and not saves_images(ledger):
                raise UsageError(
                    "shards keep no images by themselves: leave --save-adversarial out, or use "
                    "--workers"
                )
            write_header(folder, header_of(plan))
            part = request.data.take(torch.tensor(shard.rows(n)))
            search = choose_search_model(plan, part)
            decide(plan, tracker, ledger, part, search, first=shard.number == 1)
            ledger.append(finished(shard))
        return folder


def _is_done(plan: Plan, ledger: Ledger, shard: Shard, folder: Path) -> bool:
    """Returns whether a shard has nothing left to do; the first one also checks the model."""
    if finished(shard) not in ledger.entries:
        return False
    if shard.number == 1 and lacks_checks(plan, LedgerIndex(ledger.entries)):
        return False
    try:
        read_header(folder)
    except RecordError:  # it is written anew
        return False
    return True


def _suffices(stored: RunRecord, request: Request, folder: Path) -> bool:
    """Returns whether a stored result has the images and the checks that are asked for."""
    has_images = not request.saves or _holds_images(folder, stored.run_id)
    return has_images and not (request.probes and is_unchecked(stored))


def _holds_images(folder: Path, run: str) -> bool:
    """Returns whether a folder has images of a run; others of that name are as good as none."""
    try:
        return stored_images.read(folder / ADVERSARIAL, most=0).run == run
    except RecordError:
        return False


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
        elif unfinished(ledger.entries) or lacks_checks(plan, LedgerIndex(ledger.entries)):
            header = _decide_enough(plan, header, tracker, ledger)
    except (KeyboardInterrupt, IncompleteError):
        write_interrupted(folder, interrupted_record(header, ledger.entries))
        raise
    except Exception:
        if ledger.entries:  # a model can fail in the middle of a run
            write_interrupted(folder, interrupted_record(header, ledger.entries))
        raise

    if saves_images(ledger):
        images = adversarial_images(header, plan.request.data, ledger.entries)
        stored_images.write(folder / ADVERSARIAL, images)
    else:
        (folder / ADVERSARIAL).unlink(missing_ok=True)  # of an earlier evaluation
    return write_all(header, ledger, folder)


def _decide_enough(plan: Plan, header: RunHeader, tracker: Tracker, ledger: Ledger) -> RunHeader:
    """Decides all examples, or as many as settle a claim, and returns the header of these."""
    request = plan.request
    search = choose_search_model(plan, request.data)
    if request.at_least is None:
        decide(plan, tracker, ledger, request.data, search, first=True)
        return header

    seen: set[int] = set()
    for rows in early_stop.chunks(request.data, request.seed):
        chunk = request.data.take(rows)
        decide(plan, tracker, ledger, chunk, search, first=not seen)
        seen.update(chunk.ids)
        settled = early_stop.settled(header, seen, ledger.entries, request.at_least)
        if settled:
            return settled
    raise AssertionError("all examples together settle every claim")
