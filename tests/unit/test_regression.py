"""The project's own gate.

Equal circumstances allow no other verdict, and only cheap runs of shipped classifiers count.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from fake_runs import made, planted

from robustbench_kd.analysis.gate import Limits, gate_runs

FILE = Path(__file__).parents[2] / "benchmarks" / "regression.py"


@pytest.fixture(scope="module")
def regression():
    spec = spec_from_file_location("regression", FILE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flips(regression, after, **changed):
    """What differs between a run and a later one of the same model that lost a single image of a
    thousand."""
    old, new = made(Path("before"), planted()), made(Path("after"), after, **changed)
    gate = gate_runs([new], [], {old.key: old}, Limits())
    assert not gate.failures
    return regression.flipped(gate)


def test_one_flip_in_equal_circumstances_fails(regression):
    (told,) = flips(regression, planted(lost={3}))
    assert "robust verdicts differ" in told
    assert "lost 3, gained none" in told


def test_a_flip_under_another_version_is_left_to_the_gate(regression):
    assert flips(regression, planted(lost={3}), versions={"torch": "2.11.0"}) == []


def test_equal_verdicts_are_no_flip(regression):
    assert flips(regression, planted()) == []


def test_only_cheap_runs_of_shipped_classifiers_are_chosen(regression):
    cheap = made(Path("results"), planted(), model="digits-plain")
    slow = cheap.record.model_copy(update={"seconds": 2 * regression.MOST_SECONDS})
    others = [
        made(Path("results"), planted(), model="elsewhere"),
        made(Path("results"), planted(), model="digits-plain", family="ensemble"),
        made(Path("results"), planted(), model="digits-plain", mode="fast"),
        made(Path("results"), planted(), model="digits-plain", carried="0"),
        type(cheap)(cheap.folder, slow, cheap.examples),
    ]
    assert regression.chosen([cheap, *others]) == [cheap]


def test_another_device_is_asked_for_as_a_person_would(regression, monkeypatch):
    called = []
    monkeypatch.setattr(regression.subprocess, "run", lambda command, **_: called.append(command))
    regression.repeat(made(Path("results"), planted(), model="digits-plain"), device="cuda")
    (command,) = called
    assert command[:4] == [sys.executable, "-m", "robustbench_kd", "eval"]
    assert command[4].endswith("checkpoints/digits-plain.toml")
    assert command[-2:] == ["--device", "cuda"]
    assert {"--threat", "linf:8/255", "--engine", "autoattack"} <= set(command)
