"""Feeds hostile files to whatever reads files: `make fuzz`, or one case by `CASE=cards/0/17`.

A kind of file is one file in `kinds/`. It offers `SHARE`, its part of all cases, and `attempt(
random, folder)`, which makes one file and reads it; it may raise an `RkdError` and nothing else. A
case is a kind, a seed and a number, and is the same wherever it is repeated.
"""

import argparse
import faulthandler
import importlib.util
import os
import random
import resource
import select
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from robustbench_kd.core.errors import InternalError, RkdError  # noqa: E402
from robustbench_kd.core.text import printable, shortened  # noqa: E402

SECONDS = 20
MEMORY = 2 * 2**30  # bytes that one case may add
STOP = 12 * 2**30  # bytes at which a case is stopped, so that the machine goes on


class Case(NamedTuple):
    """One file, by name."""

    kind: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.kind}/{self.seed}/{self.number}"


def kinds() -> dict[str, ModuleType]:
    found = {}
    for path in sorted((HERE / "kinds").glob("[!_]*.py")):
        spec = importlib.util.spec_from_file_location(f"fuzz_{path.stem}", path)
        found[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[path.stem])
    return found


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fault(kind: ModuleType, case: Case) -> str:
    """Returns what is wrong with how a case ends, or nothing."""
    before = peak()
    with tempfile.TemporaryDirectory(prefix="rkd-fuzz-") as folder:
        try:
            kind.attempt(random.Random(str(case)), Path(folder))
        except InternalError:
            return traceback.format_exc()
        except RkdError as error:
            line = shortened(printable(str(error)))
            if error.exit_code not in {2, 4} or len(line) > 300 or not line.strip():
                return f"exit code {error.exit_code}: {line!r}"
        except BaseException:  # noqa: BLE001
            return traceback.format_exc()
    grown = peak() - before
    return f"took {grown:,} bytes" if grown > MEMORY else ""


def work(kind: ModuleType, cases: list[Case], channel: int) -> None:
    """Runs cases one after another; a line for each start and each fault goes to the channel."""
    resource.setrlimit(resource.RLIMIT_AS, (STOP, STOP))
    for case in cases:
        os.write(channel, f"{case.number}\n".encode())
        found = fault(kind, case)
        if found:
            os.write(channel, f"!{found[-3000:]!r}\n".encode())


def supervised(kind: ModuleType, cases: list[Case]) -> tuple[int, list[str]]:
    """Runs cases in a process of their own; returns how many were run, and their faults.

    The process ends with a case that takes too long, or that ends it.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        warnings.simplefilter("ignore")
        work(kind, cases, send)
        os._exit(0)
    os.close(send)
    try:
        return _followed(receive, cases, child)
    finally:
        os.close(receive)


def _followed(receive: int, cases: list[Case], child: int) -> tuple[int, list[str]]:
    started, faults, rest = 0, [], b""
    while True:
        ready, _, _ = select.select([receive], [], [], SECONDS)
        if not ready:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return started, [*faults, f"{cases[started - 1]}: took more than {SECONDS} s"]
        read = os.read(receive, 2**16)
        if not read:
            break
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            if line.startswith(b"!"):
                faults.append(f"{cases[started - 1]}: {line[1:].decode()}")
            else:
                started += 1
    _, status = os.waitpid(child, 0)
    if status:
        faults.append(f"{cases[started - 1]}: ended the process, status {status}")
    return started, faults


def run(name: str, kind: ModuleType, seed: int, count: int) -> list[str]:
    """Runs the cases of a kind and says how it went."""
    began, faults, left = time.monotonic(), [], [Case(name, seed, i) for i in range(count)]
    while left:
        done, found = supervised(kind, left[:500])
        faults += found
        left = left[done:]
    seconds = time.monotonic() - began
    print(f"{name:12} seed {seed}: {count:6,} cases, {len(faults)} faults, {seconds:.0f} s")
    for one in faults:
        print(f"  {one}".replace("\\n", "\n    "))
    sys.stdout.flush()
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="")
    parser.add_argument("--case", default="", help="KIND/SEED/NUMBER, as a fault names it")
    asked = parser.parse_args()
    faulthandler.enable()
    known = kinds()
    if asked.case:
        kind, seed, number = asked.case.split("/")
        found = fault(known[kind], Case(kind, int(seed), int(number)))
        print(found or "no fault")
        sys.exit(bool(found))

    chosen = {name: kind for name, kind in known.items() if asked.kind in {"", name}}
    whole = sum(kind.SHARE for kind in chosen.values())
    faults = []
    for name, kind in chosen.items():
        faults += run(name, kind, asked.seed, max(1, asked.cases * kind.SHARE // whole))
    print(f"{len(faults)} faults in all")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
