"""What an experiment tracker is told of a run: who asked what, the numbers, the findings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from robustbench_kd.core.records import Finding, RunRecord


@dataclass(frozen=True)
class Entry:
    """A run as every tracker takes it: names of letters, digits and `_-./` only, parameters as text, findings in Markdown."""

    run_id: str
    model: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    findings: str


def entry(record: RunRecord) -> Entry:
    """Returns what to tell of a finished run: its identity, accuracies, and for each stage accuracy, passes and seconds."""
    return Entry(
        run_id=re.sub(r"[^A-Za-z0-9_-]", "_", record.run_id),
        model=record.identity.model,
        params=_params(record),
        metrics={_plain(name): value for name, value in _metrics(record).items()},
        findings="\n".join(map(_said, record.findings)) or "none",
    )


def _params(record: RunRecord) -> dict[str, str]:
    fields = record.identity.model_dump(exclude={"versions"})
    versions = {f"versions/{name}": version for name, version in record.identity.versions.items()}
    known = {
        name: " ".join(value) if isinstance(value, list) else str(value)
        for name, value in fields.items()
    }
    return {
        _plain(name): text
        for name, text in (known | versions | {"verdict": record.verdict or ""}).items()
    }


def _metrics(record: RunRecord) -> dict[str, float]:
    accuracies = {"clean": record.clean, "robust": record.robust, "standard": record.standard}
    found = {name: accuracy.value for name, accuracy in accuracies.items() if accuracy}
    found |= {"passes": record.forwards + record.backwards, "seconds": record.seconds}
    for stage in record.stages:
        own = {
            "accuracy": stage.accuracy.value,
            "passes": stage.forwards + stage.backwards,
            "seconds": stage.seconds,
        }
        found |= {f"stages/{stage.stage}/{name}": value for name, value in own.items()}
    return found


def _said(finding: Finding) -> str:
    advice = f" What to do: {finding.advice}." if finding.advice else ""
    return f"- {finding.severity}: {finding.check}: {finding.message}.{advice}"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_./-]", "_", name)
