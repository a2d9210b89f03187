"""What an experiment tracker gets of a run: the question, the numbers, the findings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from robustbench_kd.core.records import Finding, RunRecord


@dataclass(frozen=True)
class Entry:
    """A run as every tracker takes it.

    Names have letters, digits and `_-./` only; parameters are text, findings are in Markdown.
    """

    run_id: str
    model: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    findings: str


def entry(record: RunRecord) -> Entry:
    """Returns what to tell of a finished run.

    That is its identity, accuracies, findings, and the accuracy, passes and seconds of each stage.
    """
    return Entry(
        run_id=re.sub(r"[^A-Za-z0-9_-]", "_", record.run_id),
        model=record.identity.model,
        params=_params(record),
        metrics=_metrics(record),
        findings="\n".join(map(_item, record.findings)) or "none",
    )


def _params(record: RunRecord) -> dict[str, str]:
    params = {}
    for name, value in record.identity.model_dump(exclude={"versions"}).items():
        text = str(value)
        if isinstance(value, list):
            text = " ".join(value)
        params[_plain(name)] = text
    for name, version in record.identity.versions.items():
        params[_plain(f"versions/{name}")] = version
    params["verdict"] = record.verdict or ""
    return params


def _metrics(record: RunRecord) -> dict[str, float]:
    accuracies = {"clean": record.clean, "robust": record.robust, "standard": record.standard}
    metrics = {name: accuracy.value for name, accuracy in accuracies.items() if accuracy}
    metrics["passes"] = record.passes
    metrics["seconds"] = record.seconds
    for stage in record.stages:
        prefix = _plain(f"stages/{stage.stage}")
        metrics[f"{prefix}/accuracy"] = stage.accuracy.value
        metrics[f"{prefix}/passes"] = stage.passes
        metrics[f"{prefix}/seconds"] = stage.seconds
    return metrics


def _item(finding: Finding) -> str:
    item = f"- {finding.severity}: {finding.check}: {finding.message}."
    if finding.advice:
        item += f" What to do: {finding.advice}."
    return item


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_./-]", "_", name)
