"""Hugging Face: the `model-index` metadata of a model card, as YAML."""

import json
from typing import Any

from robustbench_kd.analysis.leaderboard import Leaderboard
from robustbench_kd.analysis.table import mode
from robustbench_kd.core.records import Accuracy, Identity, RunRecord
from robustbench_kd.core.text import printable

SUFFIX = "huggingface.yaml"


def render(leaderboard: Leaderboard) -> str:
    """Returns an entry per model with a result per run, accuracies as fractions to four digits.

    The text is JSON, which is YAML too; it belongs between the two rules at the head of a model
    card.
    """
    models: dict[str, list[dict[str, Any]]] = {}
    for record in (record for board in leaderboard.boards for record in board.records):
        models.setdefault(printable(record.identity.model), []).append(_result(record))
    index = {
        "model-index": [{"name": name, "results": results} for name, results in models.items()]
    }
    return json.dumps(index, indent=2, ensure_ascii=False) + "\n"


def _result(record: RunRecord) -> dict[str, Any]:
    identity = record.identity
    about = {
        "norm": identity.norm,
        "eps": identity.eps_text,
        "suite": identity.suite,
        "engine": identity.engine,
    }
    arguments: dict[str, Any] = {name: printable(value) for name, value in about.items()}
    metrics = [_metric("accuracy", "Clean accuracy", record.clean, {})]
    if record.standard:
        metrics.append(
            _metric(
                "robust_accuracy",
                _name(record, "before adaptive attacks"),
                record.standard,
                arguments,
            )
        )
    metrics.append(_metric("robust_accuracy", _name(record, ""), record.robust, arguments))
    return {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": _dataset(identity),
        "metrics": metrics,
    }


def _dataset(identity: Identity) -> dict[str, Any]:
    name = printable(identity.dataset)
    return {"type": name, "name": name, "split": "test", "args": {"examples": identity.examples}}


def _metric(
    kind: str, name: str, accuracy: Accuracy | None, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Returns a metric; four digits never need an exponent, which YAML 1.1 would read as text."""
    known = {"args": arguments} if arguments else {}
    return {
        "type": kind,
        "name": name,
        "value": round(accuracy.value, 4) if accuracy else None,
        **known,
    }


def _name(record: RunRecord, remark: str) -> str:
    threat = printable(f"{record.identity.norm} {record.identity.eps_text}")
    return ", ".join(part for part in (f"Robust accuracy, {threat}", remark, mode(record)) if part)
