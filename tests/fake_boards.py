"""Made-up records of every kind, and leaderboards of them, for tests of what ranks and renders
them."""

import hashlib

from robustbench_kd.analysis.leaderboard import Leaderboard, beside, rank
from robustbench_kd.analysis.published import Published
from robustbench_kd.core.records import (
    Accuracy,
    Draws,
    Finding,
    Identity,
    RunRecord,
    Severity,
    StageResult,
)
from robustbench_kd.core.rows import DrawRow, ExampleRow
from robustbench_kd.core.rundir import run_folder, write_record
from robustbench_kd.core.statistics import interval
from robustbench_kd.core.verdicts import SAMPLED, verdict

AUTOATTACK = ["apgd-ce", "apgd-t", "fab-t", "square"]
HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "{{ 7 * 7 }}{% raw %}",
    "two\nlines",
    "two\r\n| rows |",
    "[link](http://example.com)",
    "![image](x)",
    "**bold** _it_ ~no~ `code`",
    "# heading",
    "back\\slash\\|",
    "&lt;",
    "\x1b[31mred\x1b[0m",
    "$x^2$ \\input{/etc/passwd} 50% {a} a_b ~ & #",
    "$\\frac$",
    "line--and---dash",
    "right\u202eleft",
    "\u6f22\u5b57 \U0001f600",
    "_hidden",
    "x" * 300,
    "",
]


def accuracy(share, n=200):
    low, high = interval(share * n, n)
    return Accuracy(value=share, n=n, ci_low=low, ci_high=high)


def run(model="net", robust=0.5, clean=0.9, **identity):
    """A record whose run id is its own, so that stored texts outlive a new field of the "
    "identity."""
    known = {
        "model": model,
        "family": "classifier",
        "architecture": "small_cnn",
        "normalisation": "none",
        "checkpoint_sha256": "0",
        "dataset": "digits",
        "data_fingerprint": "0",
        "examples": 200,
        "norm": "linf",
        "eps": 0.2,
        "eps_text": "0.2",
        "suite": "standard",
        "attacks": ["apgd-ce", "square"],
        "engine": "autoattack",
        "seed": 0,
        "batch_size": 250,
        "device": "cpu",
        "versions": {"torch": "2.10.0"},
    }
    asked = Identity.model_validate(known | identity)
    stages = [
        ("clean", clean, 200, 0),
        ("apgd-ce", robust, 18_180, 18_180),
        ("square", robust, 500_200, 0),
    ]
    return RunRecord(
        run_id=hashlib.sha256(repr(sorted((known | identity).items())).encode()).hexdigest()[:16],
        status="complete",
        identity=asked,
        protocol_hash=asked.protocol_hash(),
        clean=accuracy(clean),
        robust=accuracy(robust),
        stages=[
            StageResult(
                stage=name,
                accuracy=accuracy(left),
                forwards=forwards,
                backwards=backwards,
                seconds=1.5,
            )
            for name, left, forwards, backwards in stages
        ],
        forwards=518_580,
        backwards=18_180,
        seconds=4.5,
        verdict="consistent",
        parameters=6_882,
    )


def adaptive(model="ensemble", standard=0.8, robust=0.2, **identity):
    """A randomized defence that AutoAttack takes for robust and adaptive attacks do not."""
    asked = {"family": "ensemble", "suite": "standard+adaptive", "attacks": AUTOATTACK} | identity
    record = run(model, robust, **asked)
    draws = Draws(
        exact=True,
        draws=4,
        mean=accuracy(robust),
        all_correct=accuracy(robust / 2),
        majority=accuracy(robust),
    )
    finding = Finding(
        check="adaptive-gap",
        severity=Severity.RED,
        message="adaptive attacks lowered the robust accuracy by 60 points",
        advice="trust the lower number",
        value=0.6,
        threshold=0.05,
        examples=[3, 17],
    )
    found = {
        "standard": accuracy(standard),
        "robust_draws": draws,
        "findings": [finding],
        "verdict": "unreliable",
    }
    return record.model_copy(update=found)


def fast(model="hasty", robust=0.6, missed=0.015, **identity):
    return run(model, robust, mode="fast", **identity).model_copy(update={"missed": missed})


def put(results, record):
    """Stores a record with tables that it follows from, and returns its folder.

    What made-up runs leave open is made to agree: ids, verdict, bound, the accuracies of draws.
    """
    identity = record.identity
    n = identity.examples
    findings = list(record.findings)
    if record.missed:
        note = {"check": SAMPLED, "severity": Severity.INFO, "message": "sampled"}
        findings.append(Finding(**note, value=record.missed))
    rows = [row_of(n, record, index) for index in range(n)]
    drawn = [draw_of(n, record, index) for index in range(n)] if record.robust_draws else []
    changes = {
        "run_id": identity.run_id(),
        "findings": findings,
        "verdict": verdict(findings),
    }
    if record.robust_draws:
        majority = accuracy(sum(row.robust for row in rows) / n, n)
        draws = record.robust_draws.model_copy(update={"majority": majority})
        changes["robust_draws"] = draws
    folder = run_folder(results, identity.model, identity.run_id())
    write_record(folder, record.model_copy(update=changes), rows, drawn)
    return folder


def row_of(n, record, index):
    """An image that the first stage breaks which leaves fewer images than its index."""
    broken_by = ""
    for stage in reversed(record.stages):
        if index >= round(stage.accuracy.value * n):
            broken_by = stage.stage
    return ExampleRow(
        index=index,
        label=index % 10,
        clean_prediction=(index + (broken_by == "clean")) % 10,
        clean_correct=broken_by != "clean",
        robust=not broken_by,
        broken_by=broken_by,
        adversarial_prediction=(index + 1) % 10 if broken_by else None,
        distance=0.1 if broken_by else None,
        margin=-0.25 if broken_by else 1.5,
        forwards=None,
        backwards=None,
    )


def draw_of(n, record, index):
    """The answers to an image: the first images never fail, the others equally often."""
    draws = record.robust_draws
    never = round(draws.all_correct.value * n)
    others = 1 - (draws.mean.value * n - never) / (n - never)
    return DrawRow(index=index, clean_wrong=0.0, wrong=0.0 if index < never else others)


def published(model="Other2024", robust=0.7, **fields):
    known = {
        "model": model,
        "title": "A paper",
        "venue": "ICML 2024",
        "link": "https://example.com",
        "architecture": "WideResNet-28-10",
        "dataset": "digits",
        "norm": "linf",
        "eps": 0.2,
        "clean": 0.95,
        "robust": robust,
        "standard": None,
        "unreliable": False,
    }
    return Published.model_validate(known | fields)


def leaderboard(*records, numbers=()):
    return beside(Leaderboard(tuple(rank(records)), ()), numbers)


def example():
    """Four tables: plain, another norm, adaptive with published numbers, fast."""
    return leaderboard(
        run("teacher", 0.76, clean=0.98),
        run("small|student", 0.71, clean=0.97, versions={"torch": "2.11.0"}),
        run("plain", 0.0, clean=0.99),
        run("teacher", 0.6, clean=0.98, norm="l2", eps=0.5, eps_text="1/2"),
        adaptive(dataset="cifar10", eps=8 / 255, eps_text="8/255"),
        fast(),
        numbers=[
            published(
                "Other2024", 0.64, dataset="cifar10", eps=8 / 255, standard=0.71, unreliable=True
            ),
            published("Another2020", 0.66, dataset="cifar10", eps=8 / 255),
            published("Elsewhere2020", 0.66, dataset="mnist"),
        ],
    )
