"""Repeats cheap stored runs of shipped classifiers, and fails where verdicts changed.

Run it by `make regression`, or on another device by `make regression DEVICE=cuda`. A run with the
same run id answers the same question in the same circumstances: not one verdict may differ. Where
circumstances changed, such as the version of torch, single verdicts may flip, and `rkd gate`
decides. Writes build/regression.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from robustbench_kd.analysis import junit, markdown
from robustbench_kd.analysis.gate import Gate, Limits, gate_runs
from robustbench_kd.analysis.paired import listed
from robustbench_kd.analysis.repeat import CHECKPOINT, repetition
from robustbench_kd.analysis.runs import Run, read_runs
from robustbench_kd.core.files import write_text

ROOT = Path(__file__).parent.parent
STORED, CARDS, FRESH = ROOT / "results", ROOT / "checkpoints", ROOT / "build" / "regression"
MOST_SECONDS = 60.0


def chosen(stored: list[Run]) -> list[Run]:
    """Returns for each architecture and protocol the longest run that is cheap and independent."""
    cheap = [
        run
        for run in stored
        if run.identity.family == "classifier"
        and (CARDS / f"{run.model}.toml").exists()
        and run.record.seconds <= MOST_SECONDS
        and run.identity.mode == "exact"
        and not run.identity.carried
    ]
    ascending = sorted(cheap, key=lambda run: run.record.seconds)
    return list(
        {
            (run.identity.architecture, run.identity.protocol_hash()): run for run in ascending
        }.values()
    )


def repeat(run: Run, device: str) -> None:
    """Evaluates what a run was asked, as its report says to.

    What fails is missing afterwards, and the gate says so.
    """
    told = " ".join(repetition(run.identity).command).replace(
        CHECKPOINT, shlex.quote(str(CARDS / f"{run.model}.toml"))
    )
    arguments = shlex.split(told)[1:]
    where = ["--results", str(FRESH), *(["--device", device] if device else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "robustbench_kd", *arguments, *where], check=False, env=environment
    )


def flipped(gate: Gate) -> list[str]:
    """What differs although nothing did that could make a difference."""
    return [
        f"{cell.after.folder}: {cell.change.name} verdicts differ from the same run in {STORED}: "
        f"lost {listed(cell.change.lost)}, gained {listed(cell.change.gained)}"
        for cell in gate.cells
        if cell.before.folder.name == cell.after.folder.name
        and (cell.change.lost or cell.change.gained)
    ]


def main() -> None:
    stored, damaged = read_runs(STORED)
    baseline = {run.key: run for run in chosen(stored)}
    shutil.rmtree(FRESH, ignore_errors=True)
    for run in baseline.values():
        repeat(run, device=sys.argv[1] if len(sys.argv) > 1 else "")
    fresh, problems = read_runs(FRESH)
    gate = gate_runs(
        [run for run in fresh if run.key in baseline], [*damaged, *problems], baseline, Limits()
    )
    write_text(FRESH / "gate.xml", junit.render(gate))
    write_text(FRESH / "gate.md", markdown.gate(gate))
    failures = [
        *(cell.text for cell in gate.failures),
        *(gap.text for gap in gate.gaps),
        *flipped(gate),
    ]
    print(markdown.gate(gate))
    print("\n".join(failures) or f"{len(baseline)} runs, no verdict changed beyond chance")
    sys.exit(1 if failures or not baseline else 0)


if __name__ == "__main__":
    main()
