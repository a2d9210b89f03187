"""Fixtures that every test may use, and the rules that hold for all of them."""

import contextlib
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import settings

from robustbench_kd.cli import main

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
REAL = "RKD_TEST_DATA"
# Factories and helpers that several test files use; `tests` is no package.
sys.path.insert(0, str(HERE))

collect_ignore = ["fuzz"]  # a program of its own

settings.register_profile("rkd", deadline=None)
settings.load_profile("rkd")
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--golden", action="store_true", help="write tests/golden anew instead of comparing with it"
    )


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
    if real_data():
        return
    skip = pytest.mark.skip(reason=f"{REAL} names no folder with real images and checkpoints")
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(skip)


def real_data():
    folder = os.environ.get(REAL, "")
    return Path(folder) if folder and Path(folder).is_dir() else None


@pytest.fixture
def test_data():
    """The folder of real images and checkpoints."""
    folder = real_data()
    if folder is None:
        pytest.skip(f"{REAL} names no folder with real images and checkpoints")
    return folder


@pytest.fixture(autouse=True)
def own_randomness():
    """Every test starts from the same global random state and leaves none behind."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global state is what is guarded
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        yield
    random.setstate(python)
    np.random.set_state(legacy)  # noqa: NPY002


@pytest.fixture(scope="session")
def factories():
    """A Python file of classifiers with known answers, to be named as `FILE:factory` on the command
    line."""
    return HERE / "oracles.py"


@pytest.fixture
def golden(request):
    """Compares text with a stored file, or stores it with `--golden`."""

    def compare(name, text):
        path = GOLDEN / name
        if request.config.getoption("--golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text

    return compare


@pytest.fixture
def full_disk():
    """Lets no file grow beyond a number of bytes: writes fail half-way, as on a full disk."""

    @contextlib.contextmanager
    def limit(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


class Told:
    """What a command wrote and how it ended."""

    def __init__(self, code, stdout, stderr):
        self.code, self.stdout, self.stderr = code, stdout, stderr

    def error(self, code):
        """The one line of an error, after checking that it is one and that the exit code is the
        documented one."""
        assert self.code == code, self.stderr
        *before, last = self.stderr.splitlines() or [""]
        assert last.startswith("Error: "), self.stderr
        assert not any(line.startswith(("Error:", "Traceback", "Usage:")) for line in before)
        return last.removeprefix("Error: ")


@pytest.fixture(scope="session")
def rkd():
    """Runs the command line in this process."""

    def run(*arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Told(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def rkd_process():
    """Starts the command line in a process of its own, with one thread; gives the `Popen`."""
    started = []

    def start(*arguments, stdout=subprocess.PIPE):
        command = [sys.executable, "-m", "robustbench_kd", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def digits_net(factories, tmp_path):
    """The arguments that evaluate a classifier on twenty digits in a moment, with results in
    `tmp_path / "results"`."""
    options = {
        "dataset": "digits",
        "examples": 20,
        "threat": "linf:0.1",
        "suite": "apgd-ce",
        "results": tmp_path / "results",
    }
    return [
        f"{factories}:nearest_mean",
        *(part for name, value in options.items() for part in (f"--{name}", value)),
    ]
