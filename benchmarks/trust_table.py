"""What every check says of models that are broken on purpose and of honest ones.

Fills the tables of docs/trust.md. Run it by `make trust-table`. Real networks are measured where
`RKD_TEST_DATA` names their folder; without them the tables are printed and docs/trust.md is left
alone.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.probing.checkup import Scope, offered, probe_of, short_attacks
from robustbench_kd.engine.run.request import Extra
from robustbench_kd.engine.run.stages import plan_stages
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.oracle import Oracle, full_precision
from robustbench_kd.tensors.probe import NoGradientError, Probe
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust import gradient_coherence, gradient_mismatch, loss_gain, unstable_loss

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import broken  # noqa: E402  # models that the tests use, too
import oracles  # noqa: E402

PAGE = ROOT / "docs" / "trust.md"
SAMPLE = 64


@dataclass(frozen=True)
class Case:
    """A model under a threat, with the finding that is meant for it where it is broken."""

    name: str
    model: Callable[[], nn.Module]
    threat: str
    data: Callable[[], Dataset]
    meant: str = ""
    right: dict[str, Tensor] = field(default_factory=dict)
    normalisation: str = ""


@dataclass(frozen=True)
class Row:
    """What came of a case."""

    case: Case
    images: int
    findings: list[Finding]
    measured: list[str]
    passes: float
    share: float


def digits() -> Dataset:
    return open_dataset("digits", limit=250)


def broken_cases() -> list[Case]:
    cases = [
        Case(make.__name__.replace("_", " "), make, "linf:0.15", digits, meant)
        for make, meant in broken.BROKEN.items()
        if meant != "normalisation"
    ]
    data = digits()
    right = {
        name: model()(data.images).argmax(dim=1) == data.labels
        for name, model in (
            ("none", lambda: broken.digits("plain")),
            ("mnist", broken.wrong_normalisation),
        )
    }
    wrong = Case(
        "wrong normalisation",
        broken.wrong_normalisation,
        "linf:0.15",
        digits,
        "normalisation",
        right,
        "mnist",
    )
    return [*cases, wrong]


def honest_cases() -> list[Case]:
    random = oracles.linear
    cases = [
        Case(
            "linear, random",
            random,
            "linf:0.02",
            lambda: oracles.images_for(random(), n=100, shape=(1, 8, 8)),
        )
    ]
    cases += [
        Case("nearest mean", oracles.nearest_mean, threat, digits)
        for threat in ("linf:0.05", "l2:0.5")
    ]
    for name in ("plain", "teacher", "small"):
        for threat in ("linf:0.1", "linf:0.2", "l2:1", "l1:6"):
            cases.append(
                Case(f"digits-{name}", lambda name=name: broken.digits(name), threat, digits)
            )
    cases.append(Case("declared ensemble", broken.declared_ensemble, "linf:0.15", digits))
    cases.append(Case("front end, depth 8", lambda: broken.masked(depth=8), "linf:0.15", digits))
    return [*cases, *real_cases()]


def real_cases() -> list[Case]:
    folder = os.environ.get("RKD_TEST_DATA")
    if not folder:
        return []
    threats = {
        ("resnet2b.pth", "resnet2b"): ("linf:2/255", "linf:8/255", "l2:0.25"),
        ("cifar_cnn_a_adv.model", "cnn_a"): ("linf:2/255", "linf:8/255"),
        ("resnet20-12fca82f.th", "resnet20"): ("linf:2/255", "linf:8/255"),
    }

    def network(file: str, factory: str) -> nn.Module:
        choices = Choices(architecture=f"{folder}/real_models.py:{factory}")
        (target,) = describe(f"{folder}/models/{file}", choices)
        return load(target, classes=10, shape=(3, 32, 32)).model

    def images() -> Dataset:
        return open_dataset(f"npz:{folder}/cifar10_test_1000.npz", limit=150)

    return [
        Case(factory, lambda file=file, factory=factory: network(file, factory), threat, images)
        for (file, factory), known in threats.items()
        for threat in known
    ]


def examine(case: Case) -> Row:
    data, threat = case.data(), Threat.parse(case.threat)
    oracle = Oracle(case.model(), torch.device("cpu"))
    right = (oracle.logits(data.images).argmax(dim=1) == data.labels).nonzero()[:SAMPLE, 0]
    scope = Scope(correct=case.right, normalisation=case.normalisation)
    before = oracle.meter.passes
    with full_precision():
        sample = probe_of(oracle, data.take(right), threat, scope)
        attacks = short_attacks(sample, oracle, parts=True)
        findings = [*said("probe", sample), *said("search", attacks)]
        passes = (oracle.meter.passes - before) / len(sample)
        standard = sum(
            stage.passes(threat.norm, 10)
            for stage in plan_stages(parse_suite("standard"), oracle, threat, Extra())
        )
        return Row(case, len(sample), findings, measure(sample, attacks), passes, passes / standard)


def said(kind: str, about: Any) -> list[Finding]:
    found = []
    for check in offered(kind):
        try:
            found += check(about)
        except NoGradientError:
            continue
    return found


def measure(sample: Probe, trials: ShortAttacks) -> list[str]:
    """Returns the numbers behind the findings: medians over images, then shares of the sample."""
    try:
        gains = [middle(gain) for gain in loss_gain.gains(sample)]
        agreed = [
            middle(gradient_mismatch.agreement(sample, share)) for share in gradient_mismatch.SCALES
        ]
        steady = [middle(gradient_coherence.cosines(sample)), middle(unstable_loss.changes(sample))]
        rows = [
            trials.broken,
            trials.broken_by_noise,
            trials.prolonged.broken,
            trials.repeated.broken,
        ]
    except NoGradientError:
        return ["-"] * 11
    return [*gains, *agreed, *steady, *(f"{len(found) / len(sample):.0%}" for found in rows)]


def middle(values: Tensor) -> str:
    known = values[values.isfinite()]
    return f"{float(known.median()):.2f}" if len(known) else "-"


def names(findings: Iterable[Finding], severity: Severity, without: str = "") -> str:
    found = dict.fromkeys(
        one.check for one in findings if one.severity is severity and one.check != without
    )
    return ", ".join(found) or "-"


def broken_table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| model | finding meant for it | raised | other red ones | other yellow ones |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        meant = row.case.meant
        raised = next((str(one.severity) for one in row.findings if one.check == meant), "**no**")
        others = (
            names(row.findings, severity, meant) for severity in (Severity.RED, Severity.YELLOW)
        )
        lines.append(" | ".join([f"| {row.case.name}", meant, raised, *others]) + " |")
    return lines


def honest_table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| model | threat | images | red | yellow | passes per image | of standard |",
        "| --- | --- | --: | --- | --- | --: | --: |",
    ]
    for row in rows:
        found = (names(row.findings, severity) for severity in (Severity.RED, Severity.YELLOW))
        cells = [
            f"| {row.case.name}",
            row.case.threat,
            str(row.images),
            *found,
            f"{row.passes:.0f}",
            f"{row.share:.1%}",
        ]
        lines.append(" | ".join(cells) + " |")
    return lines


def measured_table(rows: Sequence[Row]) -> list[str]:
    heads = [
        "gain 0.1",
        "gain 1",
        "slopes 0.003",
        "0.1",
        "1",
        "coherence",
        "I2",
        "broken",
        "by noise",
        "longer",
        "again",
    ]
    lines = [
        "| model | threat | " + " | ".join(heads) + " |",
        "| --- | --- | " + " | ".join("--:" for _ in heads) + " |",
    ]
    return [
        *lines,
        *(
            " | ".join([f"| {row.case.name}", row.case.threat, *row.measured]) + " |"
            for row in rows
        ),
    ]


def filled(page: str, name: str, lines: Sequence[str]) -> str:
    """Returns a page with the table between the marks of a name replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    table = "\n".join([begin, *lines, end])
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: table, page, flags=re.DOTALL)


def examined(cases: Iterable[Case]) -> list[Row]:
    rows = []
    for case in cases:
        rows.append(examine(case))
        print(
            f"{case.name} {case.threat}: {names(rows[-1].findings, Severity.RED)}", file=sys.stderr
        )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    bad, good = examined(broken_cases()), examined(honest_cases())
    tables = {
        "broken": broken_table(bad),
        "honest": honest_table(good),
        "measured": measured_table([*bad, *good]),
    }
    print("\n\n".join("\n".join(lines) for lines in tables.values()))
    if not os.environ.get("RKD_TEST_DATA"):
        print(
            "\ndocs/trust.md is left alone: RKD_TEST_DATA names no real networks", file=sys.stderr
        )
        return
    page = PAGE.read_text(encoding="utf-8")
    for name, lines in tables.items():
        page = filled(page, name, lines)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
