"""`make gpu` at toy size on a CPU: parts leave their rows, and a finished one is not repeated."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = {"tests", "verdicts", "resnet18", "memory", "wide_resnet", "vit", "scaling",
         "distillation", "levers"}  # fmt: skip


def measured(out, *parts):
    command = [sys.executable, "benchmarks/gpu.py", "--dry", "--out", str(out), *parts]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_all_parts_at_toy_size(tmp_path):
    found = measured(tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr

    rows = {file.stem: json.loads(file.read_text())["rows"] for file in tmp_path.glob("*.json")}
    assert set(rows) == PARTS
    assert all(rows.values())
    assert not [row for part in rows.values() for row in part if "error" in row]
    assert {row["differ"] for row in rows["verdicts"]} == {0}


def test_a_finished_part_is_shown_and_not_repeated(tmp_path):
    kept = {"device": "a device", "torch": "2.11", "rows": [{"seconds": 12.5}]}
    (tmp_path / "vit.json").write_text(json.dumps(kept))

    found = measured(tmp_path, "vit")
    assert found.returncode == 0
    assert "vit: finished before" in found.stdout
    assert "| 12.5 |" in found.stdout
