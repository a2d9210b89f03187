"""What a record says twice: ids, radius, verdict, accuracies, costs and claim must agree."""

from collections.abc import Iterator

from robustbench_kd.core.claim import MISTAKES, claim_text, parse_claim
from robustbench_kd.core.engines import engine_traits
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.records import Accuracy, Claim, Identity, RunRecord
from robustbench_kd.core.statistics import accuracy, settled
from robustbench_kd.core.text import printable
from robustbench_kd.core.threat import Threat
from robustbench_kd.core.verdicts import missed, verdict_of

_CLOSE = 1e-9  # numbers are written with every digit, so that only rounding may part them
_LONGEST = 40

_Pair = tuple[str, object, object]  # a name, what is stored, and what follows from the rest


def contradictions(record: RunRecord) -> Iterator[str]:
    """Yields in words what does not follow from the rest of a complete record."""
    for name, stored, computed in (*_identity(record), *_conclusions(record)):
        if stored != computed:
            yield f"its {name} is {_shown(stored)}, by the rest of it {_shown(computed)}"

    for found in _accuracies(record):
        if not _same(found, accuracy(found.value * found.n, found.n)):
            yield f"the interval of accuracy {found.value:.4g} is not that of {found.n} examples"
    for cost in ("forwards", "backwards", "seconds"):
        stages = sum(getattr(stage, cost) for stage in record.stages)
        if getattr(record, cost) < stages * (1 - _CLOSE):
            yield f"its {cost} are fewer than those of its stages"


def _identity(record: RunRecord) -> Iterator[_Pair]:
    identity = record.identity
    yield "run id", record.run_id, identity.stored_run_id()
    yield "protocol", record.protocol_hash, identity.protocol_hash()
    yield "radius", identity.eps, _radius(identity)


def _conclusions(record: RunRecord) -> Iterator[_Pair]:
    """Yields what a complete record concludes from its parts."""
    yield "verdict", record.verdict, verdict_of(record)
    yield "bound", record.missed, missed(record.identity.mode, record.findings)

    yield from _headlines(record)

    n = record.claim.evaluated if record.claim else record.identity.examples
    for one in _accuracies(record):
        yield "number of examples", one.n, n
    if record.claim and record.robust:
        yield from _claim(record.identity, record.claim, record.robust)


def _headlines(record: RunRecord) -> Iterator[_Pair]:
    """Yields the clean and the robust accuracy with those that they repeat."""
    if not record.stages:
        yield "stages", "none", "some"
        return
    clean, robust = record.stages[0].accuracy, record.stages[-1].accuracy
    if record.clean_draws and record.robust_draws:
        clean = record.clean_draws.mean
        if not engine_traits(record.identity.engine).one_draw_breaks:
            robust = record.robust_draws.mean
    yield "clean accuracy", record.clean, clean
    yield "robust accuracy", record.robust, robust


def _claim(identity: Identity, claim: Claim, robust: Accuracy) -> Iterator[_Pair]:
    try:
        least = parse_claim(claim.text)
    except UsageError:
        yield "claim", claim.text, "none"
        return
    survivors = round(robust.value * claim.evaluated)
    holds = settled(survivors, claim.evaluated, least, MISTAKES, population=claim.population)
    yield "claim", claim.holds, holds
    yield "mode", identity.mode, f"until {claim_text(least)}"
    yield "chance of a mistake", claim.mistakes, MISTAKES
    yield "population", claim.population, identity.examples


def _accuracies(record: RunRecord) -> Iterator[Accuracy]:
    """Yields all accuracies on the examples of a run."""
    for draws in (record.clean_draws, record.robust_draws):
        if draws:
            yield from (draws.mean, draws.all_correct, draws.majority)
    for stage in record.stages:
        yield stage.accuracy
    for one in (record.clean, record.robust, record.standard):
        if one:
            yield one


def _radius(identity: Identity) -> float | str:
    try:
        return Threat.parse(f"{identity.norm}:{identity.eps_text}").eps
    except UsageError:
        return "none"


def _same(one: Accuracy, other: Accuracy) -> bool:
    ends = ((one.ci_low, other.ci_low), (one.ci_high, other.ci_high))
    return all(abs(stored - computed) < _CLOSE for stored, computed in ends)


def _shown(value: object) -> str:
    if isinstance(value, Accuracy):
        return f"{value.value:.4g}"
    text = printable(str(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
