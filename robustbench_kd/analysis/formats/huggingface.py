"""Hugging Face: the `model-index` metadata of a model card, as YAML."""

import json

from robustbench_kd.analysis.leaderboard import Leaderboard
from robustbench_kd.analysis.table import mode
from robustbench_kd.core.records import Accuracy, Identity, RunRecord
from robustbench_kd.core.text import printable

SUFFIX = "huggingface.yaml"

Json = dict[str, object]


def render(leaderboard: Leaderboard) -> str:
    """Returns an entry per model with a result per run, accuracies as fractions to four digits.

    The text is JSON, which is YAML too; it belongs between the two rules at the head of a model
    card.
    """
    models: dict[str, list[Json]] = {}
    for board in leaderboard.boards:
        for record in board.records:
            models.setdefault(printable(record.identity.model), []).append(_result(record))
    entries = [{"name": name, "results": results} for name, results in models.items()]
    return json.dumps({"model-index": entries}, indent=2, ensure_ascii=False) + "\n"


def _result(record: RunRecord) -> Json:
    identity = record.identity
    metrics = [_metric("accuracy", "Clean accuracy", record.clean)]
    if record.standard:
        metrics.append(_robust(record, record.standard, "before adaptive attacks"))
    metrics.append(_robust(record, record.robust, ""))
    return {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": _dataset(identity),
        "metrics": metrics,
    }


def _dataset(identity: Identity) -> Json:
    name = printable(identity.dataset)
    return {"type": name, "name": name, "split": "test", "args": {"examples": identity.examples}}


def _robust(record: RunRecord, accuracy: Accuracy | None, remark: str) -> Json:
    identity = record.identity
    threat = printable(f"{identity.norm} {identity.eps_text}")
    name = ", ".join(filter(None, (f"Robust accuracy, {threat}", remark, mode(record))))
    arguments = {
        "norm": printable(identity.norm),
        "eps": printable(identity.eps_text),
        "suite": printable(identity.suite),
        "engine": printable(identity.engine),
    }
    return {**_metric("robust_accuracy", name, accuracy), "args": arguments}


def _metric(kind: str, name: str, accuracy: Accuracy | None) -> Json:
    """Returns a metric; four digits never need an exponent, which YAML 1.1 would read as text."""
    value = round(accuracy.value, 4) if accuracy else None
    return {"type": kind, "name": name, "value": value}
