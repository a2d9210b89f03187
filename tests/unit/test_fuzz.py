"""The fuzzing program runs each kind of file, and finds what it is meant to find."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"
KINDS = sorted(path.stem for path in (FUZZ / "kinds").glob("[!_]*.py"))


def fuzz(*arguments, program=FUZZ):
    asked = [sys.executable, str(program), *map(str, arguments)]
    return subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)


def test_a_few_cases_of_each_kind_have_no_fault():
    seed = random.SystemRandom().randrange(10**6)
    told = fuzz("--cases", 150, "--seed", seed)
    assert told.returncode == 0, told.stdout + told.stderr
    for kind in KINDS:
        assert f"{kind:12} seed {seed}: " in told.stdout


FAULTS = {
    "raise KeyError": "KeyError",
    "os._exit(3)": "ended the process",
}


BAD = """
import os

SHARE = 1


def attempt(random, folder):
    number = len(os.listdir("PLACE"))
    open(f"PLACE/{number}.case", "w").close()
    if number == 3:
        BODY
"""


@pytest.mark.parametrize("body", FAULTS)
def test_a_fault_is_found_and_the_other_cases_are_run(body, tmp_path):
    """The program is copied beside a kind with one bad case of three."""
    source = (FUZZ / "__main__.py").read_text(encoding="utf-8")
    tests = Path(__file__).parents[1]
    paths = f"[{str(tests)!r}, {str(tests.parent)!r}]"
    source = source.replace("[str(HERE.parent), str(HERE.parent.parent)]", paths)
    (tmp_path / "__main__.py").write_text(source, encoding="utf-8")
    (tmp_path / "kinds").mkdir()
    attempt = BAD.replace("BODY", body).replace("PLACE", str(tmp_path))
    (tmp_path / "kinds" / "bad.py").write_text(attempt, encoding="utf-8")
    told = fuzz("--cases", 3, program=tmp_path)
    assert told.returncode == 1, told.stdout + told.stderr
    assert "3 cases, 1 faults" in told.stdout
    assert FAULTS[body] in told.stdout
    assert len(list(tmp_path.glob("*.case"))) == 3
