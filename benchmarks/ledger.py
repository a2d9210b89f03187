"""What the checksums of a ledger cost: 10,000 examples, four attacks, entries of 250 examples.

Run it by `.venv/bin/python benchmarks/ledger.py`.
"""

import tempfile
import time
from pathlib import Path

from robustbench_kd.core.chain import linked
from robustbench_kd.core.ledger import Decision, Entry, Ledger

EXAMPLES, STAGES, TOGETHER = 10_000, 4, 250


def entry(start: int) -> Entry:
    decisions = [
        Decision(index=start + row, broken=True, prediction=1, margin=-0.1, distance=0.03)
        for row in range(TOGETHER)
    ]
    return Entry(stage="apgd-ce", decisions=decisions)


def main() -> None:
    entries = [entry(start) for start in range(0, EXAMPLES * STAGES, TOGETHER)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        began = time.perf_counter()
        with Ledger(path) as ledger:
            for one in entries:
                ledger.append(one)
        written = time.perf_counter() - began

        lines = path.read_bytes().splitlines()
        began = time.perf_counter()
        link = ""
        for line in lines:
            link, _ = linked(link, line)
        checksums = time.perf_counter() - began

    print(f"{len(lines)} lines: written in {written:.3f} s, of it checksums {checksums:.4f} s")


if __name__ == "__main__":
    main()
