"""What identifies a run, and where it ran: every field that can change a verdict goes into the hash that names its folder."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from robustbench_kd.core.claim import claim_text
from robustbench_kd.core.records import Identity
from robustbench_kd.core.suites import Suite
from robustbench_kd.engine.autoattack import package as autoattack
from robustbench_kd.engine.run.request import Request
from robustbench_kd.engine.run.stages import Stage


def identify(request: Request, suite: Suite, steps: tuple[Stage, ...]) -> Identity:
    """Returns the identity of the run that answers a request by these stages."""
    subject, data = request.subject, request.data
    own = {
        "robustbench-kd": importlib.metadata.version("robustbench-kd"),
        "torch": torch.__version__,
    }
    return Identity(
        model=subject.name,
        family=subject.family,
        architecture=subject.architecture,
        normalisation=str(subject.normalisation or "none"),
        checkpoint_sha256=subject.checkpoint_sha256,
        code_sha256=subject.code_sha256,
        dataset=data.name,
        data_fingerprint=data.fingerprint(),
        examples=len(data),
        norm=str(request.threat.norm),
        eps=request.threat.eps,
        eps_text=request.threat.eps_text,
        suite=suite.name,
        attacks=[step.name for step in steps if not step.adaptive],
        adaptive=[step.name for step in steps if step.adaptive],
        engine=request.engine,
        precision=request.speedups.label,
        mode=suite.mode if request.at_least is None else f"until {claim_text(request.at_least)}",
        carried=request.smaller.name if request.smaller else "",
        seed=request.seed,
        # Native verdicts do not depend on it.
        batch_size=0 if request.engine == "native" else request.batch_size,
        device=request.device.type,
        versions=own | autoattack.versions(),
    )


def environment(device: torch.device) -> dict[str, str]:
    """Returns where and when a run happens, for the record; none of it is part of its identity."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.system(),
        "device_name": name,
        "threads": str(torch.get_num_threads()),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str:
    """Returns the commit of the checkout this package runs from, empty for an installed one."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "rev-parse", "HEAD"]
        environment = os.environ | {"GIT_DIR": str(root / ".git")}
        told = subprocess.run(  # noqa: S603  # a constant command
            command, env=environment, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.strip()
