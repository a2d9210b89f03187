"""What the findings of a run say of its number."""

from collections.abc import Iterable

from robustbench_kd.core.records import Finding, RunRecord, Severity, Verdict

UNCHECKED = "model-not-checked"  # the finding of a run without the checks of its model
SAMPLED = "sampled"  # the finding of a stage that attacked a sample of the survivors


def verdict(findings: Iterable[Finding]) -> Verdict:
    """Returns what the findings say of the number.

    Any red finding makes it unreliable, any yellow one suspicious. Without either, a number whose
    model was not checked is unchecked.
    """
    known = list(findings)
    severities = {finding.severity for finding in known}
    if Severity.RED in severities:
        return "unreliable"
    if Severity.YELLOW in severities:
        return "suspicious"
    is_unchecked = any(finding.check == UNCHECKED for finding in known)
    return "unchecked" if is_unchecked else "consistent"


def is_unchecked(record: RunRecord) -> bool:
    """Returns whether the model of a run was not checked, whatever else was found."""
    checks = {finding.check for finding in record.findings}
    return UNCHECKED in checks or record.verdict == "unchecked"  # the first versions said no more


def verdict_of(record: RunRecord) -> Verdict:
    """Returns the verdict that follows from the rest of a record."""
    found = verdict(record.findings)
    return "unchecked" if found == "consistent" and is_unchecked(record) else found


def verdict_words(name: str) -> str:
    """Returns a verdict as people read it; the files keep the names.

    >>> verdict_words("consistent")
    'no findings'
    """
    return "no findings" if name == "consistent" else name


def missed(mode: str, findings: Iterable[Finding]) -> float | None:
    """Returns the fraction of examples that the samples of a fast run could have missed in all."""
    if mode != "fast":
        return None
    bounds = [finding.value or 0.0 for finding in findings if finding.check == SAMPLED]
    return min(1.0, sum(bounds))
