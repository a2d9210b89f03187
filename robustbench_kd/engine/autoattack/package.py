"""The AutoAttack package behind one small face: `pyautoattack` 0.2.0, or upstream `autoattack` a392200 where installed.

Source: Croce & Hein 2020 (arXiv 2003.01690). The attacks are the package's own, unchanged. What is
undone here: settings leak from one attack to the next, so every batch gets a fresh instance; the
nine targets crash below ten classes; the global random state and the trace function are changed; a
count of suspicious calls is kept for the whole process.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from contextlib import AbstractContextManager
from typing import Any

import torch

from robustbench_kd.core.errors import ModelError
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.contracts import Images, Labels
from robustbench_kd.tensors.oracle import Oracle, is_out_of_memory

_NORMS = {Norm.LINF: "Linf", Norm.L2: "L2", Norm.L1: "L1"}
_TARGETS = 9
SETTINGS = ("standard", "plus", "rand")
_QUIET: dict[str, dict[str, bool]] = {"autoattack": {"verbose": False}, "pyautoattack": {}}


def package() -> str:
    """Returns the installed package to use: upstream `autoattack` where there is one, `pyautoattack` otherwise."""
    spec = importlib.util.find_spec("autoattack")
    # The fork may stand in `sys.modules` under upstream's name, and a folder may happen to be
    # called so.
    return "autoattack" if spec and spec.name == "autoattack" and spec.origin else "pyautoattack"


def versions() -> dict[str, str]:
    """Returns the package's name and version, for the identity of a run; a copy that was not installed has none."""
    try:
        return {package(): importlib.metadata.version(package())}
    except importlib.metadata.PackageNotFoundError:
        return {package(): "unknown"}


def passes(attack: str, suite: Suite, norm: Norm, classes: int) -> int:
    """Returns the forward and backward passes that one surviving example costs at most."""
    plus, rand, l1 = suite.settings == "plus", suite.settings == "rand", norm is Norm.L1
    targets = min(5 if l1 and attack == "apgd-t" and not plus else _TARGETS, classes - 1)
    restarts = 5 if plus or (l1 and not rand) else 1
    # With the larger radii of l1 every APGD run starts three times and so evaluates 103 points, not
    # 101.
    apgd = 206 if l1 and suite.settings == "standard" else 202
    return {
        "apgd-ce": restarts * apgd * (20 if rand else 1) + 2,
        "apgd-dlr": restarts * apgd * (20 if rand else 1) + 2,
        "apgd-t": targets * (apgd + 1) + 2,
        "fab": (5 if plus else 1) * (100 * (2 + classes) + 2) + 2,
        "fab-t": targets * 303 + 2,
        "square": 5004,
    }[attack]


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
    flags: "Flags",
) -> Images:
    """Runs one attack of the package on images `(n, c, h, w)`; returns its candidates, of the same shape.

    Raises `ModelError` where the package cannot attack the model, as where it gives no gradient.
    """
    package_suite = _instance(oracle, threat, suite, classes, seed)
    package_suite.apgd.logger = package_suite.apgd_targeted.logger = flags
    runner = _runner(package_suite, attack)
    runner.seed = seed
    with _contained_randomness(oracle.device), torch.no_grad():
        try:
            candidates: Images = runner.perturb(images.to(oracle.device), labels.to(oracle.device))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            first_line = str(error).partition("\n")[0]
            raise ModelError(
                f"{attack} cannot attack the model: {first_line}; its output must be differentiable, or use --suite square"
            ) from error
    return candidates


def check(oracle: Oracle, images: Images, labels: Labels, *, randomized: bool) -> list[Finding]:
    """Runs the package's own checks on one batch; a suite that expects a randomized defence skips that check."""
    checks = importlib.import_module(f"{package()}.checks")
    flags = Flags()
    images, labels = images.to(oracle.device), labels.to(oracle.device)
    if not randomized:
        checks.check_randomized(oracle, images, labels, bs=len(images), logger=flags)
    checks.check_range_output(oracle, images, logger=flags)
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    tracer = sys.gettrace()
    try:
        checks.check_dynamic(oracle, images, is_tf_model=False, logger=flags)
    finally:
        sys.settrace(tracer)
    return flags.findings()


def _instance(oracle: Oracle, threat: Threat, suite: Suite, classes: int, seed: int) -> Any:
    make = importlib.import_module(package()).AutoAttack
    made = make(
        oracle,
        norm=_NORMS[threat.norm],
        eps=threat.eps,
        seed=seed,
        version="custom",
        device=oracle.device,
        **_QUIET[package()],
    )
    # The fork made upstream's public method private.
    (made.set_version if package() == "autoattack" else made._set_version)(suite.settings)  # noqa: SLF001
    for targeted in (made.apgd_targeted, made.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
    return made


def _runner(made: Any, attack: str) -> Any:
    if attack in {"apgd-ce", "apgd-dlr"}:
        made.apgd.loss = attack.removeprefix("apgd-")
        return made.apgd
    if attack in {"fab", "fab-t"}:
        made.fab.targeted = attack == "fab-t"
        made.fab.n_restarts = 1 if made.fab.targeted else made.fab.n_restarts
        return made.fab
    return made.square if attack == "square" else made.apgd_targeted


def _contained_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Keeps the package from reseeding the caller's generators."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


class Flags:
    """Collects the package's warnings; stands where it expects a logger, upstream's or the fork's."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    def warning(self, message: str) -> None:
        """Keeps a message."""
        self._messages.append(message)

    log = warning

    def findings(self) -> list[Finding]:
        """Returns what the messages say, each once."""
        return [
            finding for message in dict.fromkeys(self._messages) if (finding := _finding(message))
        ]


_KNOWN_FLAGS = (
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


def _finding(message: str) -> Finding | None:
    for words, check, severity, advice in _KNOWN_FLAGS:
        if words in message:
            text = message.split(" See ", maxsplit=1)[0].strip()
            return Finding(
                check=check, severity=severity, message=f"AutoAttack: {text}", advice=advice
            )
    return None
