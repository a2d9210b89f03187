"""Runs single attacks and checks of the AutoAttack package.

It is `pyautoattack` 0.2.0, or upstream `autoattack` a392200 where that is installed. Source: Croce
and Hein 2020 (arXiv 2003.01690). The attacks are the package's own, unchanged. What is undone here:
settings leak from one attack to the next, so every batch gets a fresh instance; the nine targets
crash below ten classes; the global random state and the trace function are changed; a count of
suspicious calls is kept for the whole process.
"""

import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.engine.run.versions import autoattack_package
from robustbench_kd.tensors.contracts import Images, Labels
from robustbench_kd.tensors.oracle import Oracle, guarded

SETTINGS = ("standard", "plus", "rand")
_NORMS = {Norm.LINF: "Linf", Norm.L2: "L2", Norm.L1: "L1"}
_TARGETS = 9
_QUIET: dict[str, dict[str, bool]] = {"autoattack": {"verbose": False}, "pyautoattack": {}}
_KNOWN_WARNINGS = (
    (
        "randomized defense",
        "randomness",
        Severity.RED,
        "score fresh draws: the package judges by a single one",
    ),
    (
        "probability distribution",
        "probabilities",
        Severity.YELLOW,
        "return logits: softmax outputs hide gradients",
    ),
    (
        "dynamic defense",
        "optimisation-in-forward",
        Severity.YELLOW,
        "attack the inner optimisation too",
    ),
    (
        "zero gradient",
        "zero-gradients",
        Severity.YELLOW,
        "use a margin loss, a surrogate or a gradient-free attack",
    ),
)


class _PackageAttack(Protocol):
    """What is used of an attack of the package; no attack has all of it."""

    seed: int
    loss: str
    targeted: bool
    n_restarts: int
    n_target_classes: int
    logger: "Warnings"

    def perturb(self, x: Images, y: Labels) -> Images: ...


class _PackageSuite(Protocol):
    apgd: _PackageAttack
    apgd_targeted: _PackageAttack
    fab: _PackageAttack
    square: _PackageAttack


class Warnings:
    """Collects the package's warnings in place of its logger, upstream's or the fork's."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    def warning(self, message: str) -> None:
        """Keeps a message."""
        self._messages.append(message)

    log = warning

    def findings(self) -> list[Finding]:
        """Returns one finding for each known message."""
        findings = []
        for message in dict.fromkeys(self._messages):
            finding = _finding(message)
            if finding:
                findings.append(finding)
        return findings


def passes(attack: str, suite: Suite, norm: Norm, classes: int) -> int:
    """Returns the forward and backward passes that one surviving example costs at most.

    Raises `UsageError` for an attack that the package does not have.
    """
    plus = suite.settings == "plus"
    rand = suite.settings == "rand"
    l1 = norm is Norm.L1

    most_targets, restarts, draws = _TARGETS, 1, 1
    if l1 and attack == "apgd-t" and not plus:
        most_targets = 5
    if plus or (l1 and not rand):
        restarts = 5
    if rand:
        draws = 20
    targets = min(most_targets, classes - 1)
    # With the larger radii of l1 every APGD run starts three times: 103 points, not 101.
    apgd = 206 if l1 and suite.settings == "standard" else 202
    untargeted_apgd = restarts * apgd * draws + 2
    costs = {
        "apgd-ce": untargeted_apgd,
        "apgd-dlr": untargeted_apgd,
        "apgd-t": targets * (apgd + 1) + 2,
        "fab": (5 if plus else 1) * (100 * (2 + classes) + 2) + 2,
        "fab-t": targets * 303 + 2,
        "square": 5004,
    }
    if attack not in costs:
        raise UsageError(f"the AutoAttack package has no attack '{attack}': use --engine native")
    return costs[attack]


def perturb(
    attack: str,
    oracle: Oracle,
    images: Images,
    labels: Labels,
    *,
    threat: Threat,
    suite: Suite,
    classes: int,
    seed: int,
    warnings: Warnings,
) -> Images:
    """Returns the candidates of one attack of the package for images `(n, c, h, w)`.

    Raises `ModelError` where the package cannot attack the model, as where it gives no gradient.
    """
    package_suite = _instance(oracle, threat, suite, classes, seed)
    package_suite.apgd.logger = package_suite.apgd_targeted.logger = warnings
    package_attack = _attack(package_suite, attack)
    package_attack.seed = seed

    failed = guarded(f"{attack} cannot attack the model")
    with failed, _contained_randomness(oracle.device), torch.no_grad():
        return package_attack.perturb(images.to(oracle.device), labels.to(oracle.device))


def check(oracle: Oracle, images: Images, labels: Labels, *, randomized: bool) -> list[Finding]:
    """Runs the package's own checks on one batch.

    A suite for randomized defences skips the check for randomness.
    """
    checks = importlib.import_module(f"{autoattack_package()}.checks")
    warnings = Warnings()
    images = images.to(oracle.device)
    labels = labels.to(oracle.device)

    tracer = sys.gettrace()
    try:
        with guarded("the model failed under the checks of AutoAttack"):
            if not randomized:
                checks.check_randomized(oracle, images, labels, bs=len(images), logger=warnings)
            checks.check_range_output(oracle, images, logger=warnings)
            checks.funcs.update(dict.fromkeys(checks.funcs, 0))
            checks.check_dynamic(oracle, images, is_tf_model=False, logger=warnings)
    finally:
        sys.settrace(tracer)
    return warnings.findings()


def _instance(
    oracle: Oracle, threat: Threat, suite: Suite, classes: int, seed: int
) -> _PackageSuite:
    package = autoattack_package()
    make = importlib.import_module(package).AutoAttack
    made = make(
        oracle,
        norm=_NORMS[threat.norm],
        eps=threat.eps,
        seed=seed,
        version="custom",
        device=oracle.device,
        **_QUIET[package],
    )
    # The fork made upstream's public method private.
    method = "set_version" if package == "autoattack" else "_set_version"
    set_version: Callable[[str], None] = getattr(made, method)
    set_version(suite.settings)

    package_suite: _PackageSuite = made
    for targeted in (package_suite.apgd_targeted, package_suite.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
    return package_suite


def _attack(suite: _PackageSuite, name: str) -> _PackageAttack:
    if name in {"apgd-ce", "apgd-dlr"}:
        suite.apgd.loss = name.removeprefix("apgd-")
        return suite.apgd
    if name in {"fab", "fab-t"}:
        suite.fab.targeted = name == "fab-t"
        if suite.fab.targeted:
            suite.fab.n_restarts = 1
        return suite.fab
    if name == "square":
        return suite.square
    return suite.apgd_targeted


def _contained_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Keeps the package from seeding the caller's generators."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _finding(message: str) -> Finding | None:
    for words, check_name, severity, advice in _KNOWN_WARNINGS:
        if words in message:
            text = message.split(" See ", maxsplit=1)[0].strip()
            return Finding(
                check=check_name, severity=severity, message=f"AutoAttack: {text}", advice=advice
            )
    return None
