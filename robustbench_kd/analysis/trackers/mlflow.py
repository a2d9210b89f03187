"""MLflow: runs of the experiment 'robustbench-kd' on a tracking server."""

from robustbench_kd.analysis.trackers._library import library
from robustbench_kd.analysis.tracking import Entry
from robustbench_kd.core.errors import RecordError

_TAG = "rkd.run"
_LONGEST = 500  # letters of a parameter that every version of MLflow takes


def log(entry: Entry, place: str) -> str:
    """Writes a run to the server at the URI `place` and returns its id there.

    By default the server is MLflow's own. Logging a run again updates it. Raises `RecordError`
    where the server does not take it.
    """
    mlflow = library("mlflow")
    try:
        if place:
            mlflow.set_tracking_uri(place)
        mlflow.set_experiment("robustbench-kd")
        query = f"tags.`{_TAG}` = '{entry.run_id}'"
        known = mlflow.search_runs(filter_string=query, output_format="list")
        run_id = known[0].info.run_id if known else None
        with mlflow.start_run(run_id=run_id, run_name=entry.model) as run:
            mlflow.set_tag(_TAG, entry.run_id)
            mlflow.log_params({name: value[:_LONGEST] for name, value in entry.params.items()})
            mlflow.log_metrics(dict(entry.metrics))
            mlflow.log_text(entry.findings, "findings.md")
            return str(run.info.run_id)
    except mlflow.MlflowException as error:
        raise RecordError(f"MLflow refused run {entry.run_id}: {error}") from error
