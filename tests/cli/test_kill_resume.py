"""A run that is killed at any moment goes on where it stopped and ends with the same files."""

import signal
import subprocess
import sys
import time

import pytest

from robustbench_kd.core.ledger import Ledger
from robustbench_kd.core.rundir import LEDGER

# Each is busy for some seconds, and writes more than a handful of entries on the way.
EVALUATIONS = {
    "autoattack": [
        "nearest_mean",
        "linf:0.08",
        "apgd-ce,apgd-dlr",
        "--examples",
        24,
        "--batch-size",
        6,
    ],
    "native": ["slow_mean", "linf:0.1", "apgd-ce,apgd-margin", "--examples", 16, "--batch-size", 8],
}


def evaluation(engine, factories):
    """The arguments that evaluate a classifier by an engine, without the folder for results."""
    factory, threat, suite, *rest = EVALUATIONS[engine]
    asked = ["--dataset", "digits", "--threat", threat, "--suite", suite, "--engine", engine]
    return ["eval", f"{factories}:{factory}", *asked, *rest]


def until_lines(process, results, lines):
    """Waits until the ledger of a running evaluation has so many lines."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        ledgers = list(results.glob("*/*/ledger.jsonl"))
        if ledgers and ledgers[0].read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.01)
    raise AssertionError(f"the run ended before {lines} lines: {process.communicate()}")


def examples(results):
    (path,) = results.glob("*/*/examples.csv")
    return path.read_text()


@pytest.fixture(scope="module", params=EVALUATIONS)
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def undisturbed(rkd, engine, factories, tmp_path_factory):
    results = tmp_path_factory.mktemp("undisturbed")
    assert rkd(*evaluation(engine, factories), "--results", results).code == 0
    return examples(results)


@pytest.mark.parametrize("lines", [3, 5])
def test_a_run_killed_outright_goes_on_where_it_stopped(
    rkd, rkd_process, engine, factories, tmp_path, undisturbed, lines
):
    arguments = [*evaluation(engine, factories), "--results", tmp_path / "results"]
    process = rkd_process(*arguments)
    until_lines(process, tmp_path / "results", lines)
    process.kill()
    process.wait()
    (ledger,) = tmp_path.glob("results/*/*/ledger.jsonl")
    kept = ledger.read_bytes()
    assert kept.count(b"\n") >= lines
    assert not list(tmp_path.glob("results/*/*/examples.csv"))
    assert rkd(*arguments).code == 0
    assert examples(tmp_path / "results") == undisturbed
    assert not ledger.exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_interrupt_from_the_keyboard_says_so_and_can_be_resumed(
    rkd, rkd_process, engine, factories, tmp_path, undisturbed
):
    arguments = [*evaluation(engine, factories), "--results", tmp_path / "results"]
    process = rkd_process(*arguments)
    until_lines(process, tmp_path / "results", 3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == (
        "Interrupted; an evaluation keeps what it decided: run the same command to resume it."
    )
    (record,) = tmp_path.glob("results/*/*/run.json")
    assert '"status": "interrupted"' in record.read_text()
    assert "is unfinished" in rkd("leaderboard", tmp_path / "results").stderr
    assert rkd(*arguments).code == 0
    assert examples(tmp_path / "results") == undisturbed


def test_an_interrupt_in_the_middle_of_an_import_has_the_same_exit_code(tmp_path):
    stopped = """
from robustbench_kd.cli import _group

def import_module(_name):
    exec("raise KeyboardInterrupt")

_group.import_module = import_module
_group.main(["list"])
"""
    (tmp_path / "stopped.py").write_text(stopped)
    process = subprocess.run(
        [sys.executable, "-m", "stopped"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr.splitlines()[-1][:11]) == (130, "Interrupted")


def test_two_processes_do_not_write_one_run(rkd, digits_net, tmp_path):
    rkd("eval", *digits_net)
    (record,) = tmp_path.glob("results/*/*/run.json")
    with Ledger(record.parent / LEDGER):
        assert "another process is writing" in rkd("eval", *digits_net, "--fresh").error(2)
    assert rkd("eval", *digits_net, "--fresh").code == 0
