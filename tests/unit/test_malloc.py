"""The process keeps the memory that it frees, so that the next step needs no new pages."""

import platform
import subprocess
import sys

import pytest

from robustbench_kd.tensors import malloc

FAULTS = """
import resource, torch
from robustbench_kd.tensors.malloc import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        [torch.ones(2**18) for _ in range(64)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries have no such thresholds"
)
def test_memory_that_is_freed_and_taken_again_costs_no_page_faults():
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True, text=True)
    assert int(out.stdout) < 100


def test_nothing_happens_with_another_c_library(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda _name: pytest.fail("there is no mallopt"))
    malloc.keep_freed_memory()
