"""Proves and measures the GPU path in one command: `make gpu`, or `make gpu DRY=1` on a CPU.

Every part runs in a process of its own, so a fault of the device ends one part only. Its rows are
kept as JSON in the output folder, those of a part that was stopped as NAME.part. Finished parts are
skipped when the command is given again. Parts that are named run alone. Tables are printed last.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Seconds after which a part is given up, in the order in which parts run.
LIMITS = {
    "tests": 45,
    "verdicts": 75,
    "resnet18": 120,
    "memory": 30,
    "wide_resnet": 75,
    "vit": 45,
    "scaling": 45,
    "distillation": 75,
    "levers": 120,
}


def main() -> int:
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        return one(options)
    failed = [name for name in options.parts or LIMITS if not done(name, options)]
    for name in LIMITS:
        for file in sorted(options.out.glob(f"{name}.*")):
            show(file.name, json.loads(file.read_text()))
    if failed:
        print(f"\nnot done: {', '.join(failed)}; the same command tries them again")
    return int(bool(failed))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures the GPU path, part by part.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(LIMITS))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--dry", action="store_true", help="toy size, on a CPU")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(LIMITS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; parts are {', '.join(LIMITS)}")
    return options


def done(name: str, options: argparse.Namespace) -> bool:
    """Runs a part unless it is finished; returns whether it is."""
    if (options.out / f"{name}.json").exists():
        print(f"{name}: finished before", flush=True)
        return True

    command = [sys.executable, __file__, name, "--one", "--out", str(options.out)]
    command += ["--dry"] if options.dry else []
    limit = LIMITS[name] * (10 if options.dry else 1)  # a CPU that others use, too
    start = time.perf_counter()
    code: int | str
    try:
        code = subprocess.run(command, cwd=ROOT, timeout=limit, check=False).returncode
    except subprocess.TimeoutExpired:
        code = f"stopped after {limit} s"
    print(f"{name}: {code or 'finished'}, {time.perf_counter() - start:.1f} s", flush=True)
    return code == 0


def one(options: argparse.Namespace) -> int:
    """Runs one part in this process and keeps its rows."""
    import torch  # noqa: PLC0415  # the process that waits for the parts needs none
    from gpu_parts import PARTS, Scale  # noqa: PLC0415

    torch.set_num_threads(1)
    (name,) = options.parts
    device = "cpu, toy size" if options.dry else torch.cuda.get_device_name()
    kept: dict[str, Any] = {"device": device, "torch": torch.__version__, "rows": []}
    unfinished = options.out / f"{name}.part"
    for row in PARTS[name](Scale(options.dry)):
        kept["rows"].append(row)
        unfinished.write_text(json.dumps(kept, indent=1))
    unfinished.rename(options.out / f"{name}.json")
    return 0


def show(name: str, kept: dict[str, Any]) -> None:
    """Prints the rows of a part as a Markdown table."""
    print(f"\n{name} ({kept['device']}, torch {kept['torch']})\n")
    columns = list(dict.fromkeys(key for row in kept["rows"] for key in row))
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for row in kept["rows"]:
        print("| " + " | ".join(str(row.get(column, "")) for column in columns) + " |")


if __name__ == "__main__":
    sys.exit(main())
