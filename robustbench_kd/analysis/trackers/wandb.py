"""Weights & Biases: runs of a project."""

from robustbench_kd.analysis.trackers._library import library
from robustbench_kd.analysis.tracking import Entry
from robustbench_kd.core.errors import RecordError


def log(entry: Entry, place: str) -> str:
    """Writes a run to the project `place`, `robustbench-kd` by default, and returns its id there.

    Logging a run again updates it. Raises `RecordError` where the service does not take it.
    """
    wandb = library("wandb")
    try:
        with wandb.init(
            project=place or "robustbench-kd",
            id=entry.run_id,
            name=entry.model,
            config=dict(entry.params),
            notes=entry.findings,
            resume="allow",
        ) as run:
            run.summary.update(dict(entry.metrics))
            return str(run.id)
    except wandb.Error as error:
        raise RecordError(f"Weights & Biases refused run {entry.run_id}: {error}") from error
