"""Decides examples of a run into its ledger: clean answers, checks, attacks, scores.

What the ledger holds already is not done again, and nothing else is left out: a run that was killed
at any moment ends with the same decisions and findings.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from robustbench_kd.core.ledger import Entry, Ledger
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.engine import clean_pass
from robustbench_kd.engine.engines import open_engine
from robustbench_kd.engine.judging import rejection, rescore
from robustbench_kd.engine.passes.batch_size import batch_size
from robustbench_kd.engine.passes.batching import one_must_fit
from robustbench_kd.engine.passes.speedups import Speedups, search_model
from robustbench_kd.engine.probing.mismatch import CLEAN_CHECKS, clean_checks
from robustbench_kd.engine.record.build import was_checked
from robustbench_kd.engine.run.ledger_index import LedgerIndex
from robustbench_kd.engine.run.plan import Plan
from robustbench_kd.engine.run.progress import Tracker
from robustbench_kd.engine.run.run import CLEAN, RESUMED, SMALLER, Run
from robustbench_kd.engine.run.stages import with_search_model
from robustbench_kd.tensors.contracts import Classifier, Dataset

SAVING = "saving"  # marks a ledger whose decisions hold their images
_SPEEDUPS = "speedups"
_TRIAL_IMAGES = 256


class SearchModel(NamedTuple):
    """What searches ask in place of the defence, and about how many images at once."""

    model: Classifier
    batch_size: int


def decide(
    plan: Plan,
    tracker: Tracker,
    ledger: Ledger,
    data: Dataset,
    search: SearchModel,
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
        saves_images=saves_images(ledger),
    )
    for entry in _entries(run, clean, first=first):
        _append(ledger, _left_out(run.index, search.model))
        _append(ledger, [entry])
    _append(ledger, _left_out(run.index, search.model))


def lacks_checks(plan: Plan, index: LedgerIndex) -> bool:
    """Returns whether the model is to be checked, and was not."""
    return plan.request.probes and not was_checked(index)


def _append(ledger: Ledger, entries: Iterable[Entry]) -> None:
    """Appends entries; the first one of a process that goes on where another stopped is marked."""
    for entry in entries:
        if ledger.inherited and not ledger.appended:
            ledger.append(Entry(stage=RESUMED))
        ledger.append(entry)


def _entries(run: Run, clean: list[Entry], *, first: bool) -> Iterator[Entry]:
    """Yields everything that is decided in its order, unless the ledger holds it already."""
    index = run.index
    request = run.plan.request
    for entry in clean:
        if not {decision.index for decision in entry.decisions} <= index.decisions(CLEAN).keys():
            yield entry
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
    probes = lacks_checks(run.plan, index)
    if not (looks_at_answers or probes):
        return

    if len(run.data) < len(request.data):
        logits, _ = clean_pass.clean_pass(run.oracle, request.data, request.threat, run.batch_size)
        run = replace(run, data=request.data, logits=logits)
    if looks_at_answers:
        yield clean_checks(run.oracle, run.logits, run.data, request.subject.normalisation)
    if probes:
        yield open_engine(request.engine).check_model(run)


def saves_images(ledger: Ledger) -> bool:
    """Returns whether the decisions of a ledger hold their images: all do, or none does."""
    return any(entry.stage == SAVING for entry in ledger.entries)


def choose_search_model(plan: Plan, data: Dataset) -> SearchModel:
    """Returns the batch size, and the model that searches ask in place of the defence."""
    request = plan.request
    model = plan.oracle.model
    speedups = request.speedups
    device = request.device
    trial = data.images[:_TRIAL_IMAGES]
    with one_must_fit():
        if speedups == Speedups():
            size = request.batch_size or batch_size(plan.oracle, trial, device, most=len(data))
            return SearchModel(model, size)

        probe = data.images[:4]
        eager = search_model(model, device, replace(speedups, compile=False), size=0, probe=probe)
        size = request.batch_size or batch_size(eager, trial, device, most=len(data))
        if not speedups.compile:
            return SearchModel(eager, size)
        compiled = search_model(model, device, speedups, size=size, probe=probe)
        return SearchModel(compiled, size)


def _left_out(index: LedgerIndex, model: Classifier) -> Iterator[Entry]:
    """Yields what speedups had to leave out so far, unless the ledger says it already.

    Some show only at the first pass, so it is asked before each entry is kept.
    """
    known = [finding for entry in index.entries(_SPEEDUPS) for finding in entry.findings]
    findings = []
    for note in getattr(model, "notes", ()):
        finding = Finding(check="lever-left-out", severity=Severity.INFO, message=note)
        if finding not in known:
            findings.append(finding)
    if findings:
        yield Entry(stage=_SPEEDUPS, findings=findings)
