"""What is known of a run before it starts; with the ledger it makes the record."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from robustbench_kd.core.chain import first_link, linked, value_of
from robustbench_kd.core.engines import engine_traits
from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.files import read_bytes, write_bytes
from robustbench_kd.core.ranges import Count
from robustbench_kd.core.records import Claim, Finding, Frozen, Identity, Severity, Source
from robustbench_kd.core.rundir import JOB
from robustbench_kd.engine.probing.checkup import planned_stage
from robustbench_kd.engine.run.identity import environment
from robustbench_kd.engine.run.plan import Plan
from robustbench_kd.tensors.defence import Surfaced
from robustbench_kd.tensors.oracle import Oracle
from robustbench_kd.tensors.probe import FinishedStage


class RunHeader(Frozen):
    """The part of a record beside the ledger; the ledgers of shards have it as `job.json`.

    `labels` are by example id, in the order of the data set. `members` is the number of members of
    a finite ensemble, whose answers are exact. `composite` says whether the defence is more than a
    plain classifier.
    """

    identity: Identity
    labels: dict[Count, Count]
    stages: tuple[FinishedStage, ...]
    parameters: Count
    environment: dict[str, str]
    source: Source = Source()
    findings: list[Finding]
    randomized: bool = False
    members: Count = 0
    composite: bool = False
    claim: Claim | None = None

    @property
    def attacks(self) -> list[str]:
        """Returns the names of all attacks in their order, those on found surfaces included."""
        return [stage.name for stage in self.stages]

    @property
    def one_draw_breaks(self) -> bool:
        """Returns whether a single wrong draw counts as broken."""
        return engine_traits(self.identity.engine).one_draw_breaks


def header_of(plan: Plan) -> RunHeader:
    """Returns what is known of a run before it starts."""
    request = plan.request
    oracle = plan.oracle
    is_composite = (
        plan.identity.family != "classifier"
        or isinstance(oracle.model, Surfaced)
        or oracle.randomized
    )
    return RunHeader(
        identity=plan.identity,
        labels=dict(zip(request.data.ids, request.data.labels.tolist(), strict=True)),
        stages=tuple(planned_stage(stage, request.threat.norm) for stage in plan.stages),
        parameters=request.subject.parameters,
        environment=environment(request.device),
        source=request.source,
        findings=[*_training_mode(oracle), *_changed_attacks(plan.changes), *plan.seen],
        randomized=oracle.randomized,
        members=len(oracle.weights(1)) if oracle.randomized and oracle.exact else 0,
        composite=is_composite,
    )


def write_header(folder: Path, header: RunHeader) -> None:
    """Writes the `job.json` of a run."""
    path = folder / JOB
    _, line = linked(first_link(path), header.model_dump_json().encode())
    write_bytes(path, line)


def read_header(folder: Path) -> RunHeader:
    """Reads the `job.json` of a run.

    Raises `RecordError` where it is missing, damaged, or of another run.
    """
    path = folder / JOB
    try:
        found = value_of(first_link(path), read_bytes(path))
        header = RunHeader.model_validate_json(found[1] if found else b"")
    except OSError as error:
        raise RecordError(f"cannot read '{path}': {error.strerror}") from error
    except ValidationError as error:
        raise RecordError(
            f"'{path}' is damaged, or of a version without checksums: run a shard again to write "
            "it anew"
        ) from error
    if header.identity.run_id() != path.absolute().parent.name:
        raise RecordError(
            f"'{path}' is of run {header.identity.run_id()}: remove it and run a shard again"
        )
    return header


def _training_mode(oracle: Oracle) -> list[Finding]:
    if not oracle.was_training:
        return []
    message = "the model was left in training mode; it was put in evaluation mode"
    advice = (
        "call .eval() in the factory, if dropout or batch statistics are not part of the defence"
    )
    return [Finding(check="training-mode", severity=Severity.INFO, message=message, advice=advice)]


def _changed_attacks(changes: Iterable[str]) -> list[Finding]:
    advice = "with so few classes the number is not the standard protocol's"
    return [
        Finding(check="attack-undefined", severity=Severity.INFO, message=change, advice=advice)
        for change in changes
    ]
