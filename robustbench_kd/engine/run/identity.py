"""What identifies a run, and where it ran.

Every field that can change a verdict goes into the hash that names the run's folder.
"""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from robustbench_kd.core.claim import claim_text
from robustbench_kd.core.engines import engine_traits
from robustbench_kd.core.records import Identity
from robustbench_kd.core.suites import Suite
from robustbench_kd.engine.run.request import Request
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.engine.run.versions import versions


def identify(request: Request, suite: Suite, stages: Sequence[Stage]) -> Identity:
    """Returns the identity of the run that answers a request by these stages."""
    subject = request.subject
    data = request.data
    batch_matters = engine_traits(request.engine).batch_matters
    mode = suite.mode if request.at_least is None else f"until {claim_text(request.at_least)}"

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
        attacks=[stage.name for stage in stages if not stage.adaptive],
        adaptive=[stage.name for stage in stages if stage.adaptive],
        engine=request.engine,
        precision=request.speedups.label,
        mode=mode,
        carried=request.smaller.name if request.smaller else "",
        seed=request.seed,
        batch_size=request.batch_size if batch_matters else 0,
        device=request.device.type,
        versions=versions(),
    )


def environment(device: torch.device) -> dict[str, str]:
    """Returns where and when a run happens; none of it is part of the identity."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.system(),
        "device_name": _device_name(device),
        "threads": str(torch.get_num_threads()),
        "git_commit": _git_commit(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _git_commit() -> str:
    """Returns the commit of the checkout this package runs from, empty for an installed one."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return ""

    command = ["git", "rev-parse", "HEAD"]
    environment = os.environ | {"GIT_DIR": str(root / ".git")}
    try:
        answer = subprocess.run(  # noqa: S603  # a constant command
            command, env=environment, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()
