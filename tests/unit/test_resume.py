"""A run that ends early says so, loses nothing, and goes on to the same verdicts."""

import json
from functools import partial

import pyautoattack
import pytest
import torch
from oracles import Failing, budgets, conv, images_for, linear
from oracles import request as any_request

from robustbench_kd.core.errors import IncompleteError, ModelError
from robustbench_kd.core.rundir import EXAMPLES, LEDGER, RECORD
from robustbench_kd.engine.evaluate import evaluate

request = partial(any_request, engine="autoattack", probes=True)


@pytest.fixture(autouse=True)
def cheap():
    with budgets(pyautoattack, iterations=8, queries=30):
        yield


def checks_of(record):
    return {finding.check for finding in record.findings}


def examples_after(model, data, folder, **options):
    return (evaluate(request(model, data, **options), folder).folder / EXAMPLES).read_text()


def assert_interrupted_and_resumed(model, data, folder):
    """Asserts that a run has an interrupted record, and goes on to what a fresh run decides."""
    (run,) = folder.glob("*/*")
    assert json.loads((run / RECORD).read_text())["status"] == "interrupted"
    assert examples_after(model, data, folder, batch_size=8) == examples_after(
        model, data, folder / "again", batch_size=8
    )


def test_where_memory_ends_the_batch_is_halved_and_nothing_else_changes(tmp_path):
    model = conv()
    data = images_for(model, wrong=3)
    tight = Failing(model, torch.OutOfMemoryError("CUDA out of memory"), most=5)
    outcome = evaluate(request(tight, data, batch_size=20), tmp_path / "tight")
    said = [finding for finding in outcome.record.findings if finding.check == "batch-size-halved"]
    assert {finding.value for finding in said} == {5.0}
    assert {finding.message.split(":")[0] for finding in said} == {
        f"out of memory in {stage}" for stage in ("clean", "checks", "apgd-ce")
    }
    expected = examples_after(model, data, tmp_path / "wide", batch_size=5)
    assert (outcome.folder / EXAMPLES).read_text() == expected


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_other_ways_to_run_out_of_memory_are_known(error, tmp_path):
    tight = Failing(linear(), error, most=3)
    record = evaluate(request(tight, images_for(linear(), n=4, shape=(1, 8, 8))), tmp_path).record
    assert "batch-size-halved" in checks_of(record)


def test_an_image_that_does_not_fit_ends_the_run_resumably(tmp_path):
    model = conv()
    data = images_for(model)
    full = Failing(model, torch.OutOfMemoryError("CUDA out of memory"), after=25)
    with pytest.raises(IncompleteError, match="out of memory with a batch of one image") as caught:
        evaluate(request(full, data, batch_size=8), tmp_path)
    assert caught.value.exit_code == 4
    assert_interrupted_and_resumed(model, data, tmp_path)


def test_a_model_that_fails_in_the_middle_keeps_what_was_decided(tmp_path):
    model = conv()
    data = images_for(model)
    broken = Failing(model, ValueError("lost its way"), after=40)
    with pytest.raises(ModelError, match="lost its way") as caught:
        evaluate(request(broken, data, batch_size=8), tmp_path)
    assert caught.value.exit_code == 2
    assert_interrupted_and_resumed(model, data, tmp_path)


def test_a_model_that_fails_at_once_leaves_no_record(tmp_path):
    broken = Failing(linear(), ValueError("lost its way"), after=0)
    with pytest.raises(ModelError, match="lost its way"):
        evaluate(request(broken, images_for(linear(), shape=(1, 8, 8))), tmp_path)
    assert not list(tmp_path.glob("*/*/run.json"))


def test_even_the_first_image_may_not_fit(tmp_path):
    full = Failing(linear(), torch.OutOfMemoryError("CUDA out of memory"), most=0)
    with pytest.raises(IncompleteError, match="out of memory"):
        evaluate(request(full, images_for(linear(), shape=(1, 8, 8))), tmp_path)


@pytest.mark.parametrize("after", [2, 15, 40, 60])
def test_an_interrupted_run_says_so_and_resumes_to_the_same_verdicts(after, tmp_path):
    model = conv()
    data = images_for(model, wrong=2)
    options = {"suite": "apgd-ce,square", "batch_size": 8}
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            request(Failing(model, KeyboardInterrupt(), after=after), data, **options), tmp_path
        )
    (folder,) = tmp_path.glob("*/*")
    record = json.loads((folder / RECORD).read_text())
    assert (record["status"], record["robust"], record["verdict"]) == ("interrupted", None, None)
    assert not (folder / EXAMPLES).exists()
    assert examples_after(model, data, tmp_path, **options) == examples_after(
        model, data, tmp_path / "again", **options
    )
    assert not (folder / LEDGER).exists()


def test_an_interrupted_record_lists_only_the_stages_that_are_done(tmp_path):
    model = conv()
    options = {"suite": "apgd-ce,square", "batch_size": 8}
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            request(Failing(model, KeyboardInterrupt(), after=20), images_for(model), **options),
            tmp_path,
        )
    (path,) = tmp_path.glob(f"*/*/{RECORD}")
    assert [stage["stage"] for stage in json.loads(path.read_text())["stages"]] == ["clean"]


def test_what_was_decided_before_an_interruption_is_not_computed_again(tmp_path):
    model = conv()
    data = images_for(model)
    whole, first, second = (
        Failing(model, KeyboardInterrupt(), after=after) for after in (10**9, 45, 10**9)
    )
    evaluate(request(whole, data, batch_size=8), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluate(request(first, data, batch_size=8), tmp_path)
    evaluate(request(second, data, batch_size=8), tmp_path)
    assert second.calls < whole.calls - 20


def test_a_second_call_returns_the_stored_record_at_the_cost_of_one_probe(tmp_path):
    model = Failing(linear(), KeyboardInterrupt())
    data = images_for(linear(), shape=(1, 8, 8))
    first = evaluate(request(model, data), tmp_path)
    calls = model.calls
    second = evaluate(request(model, data), tmp_path)
    assert (first.stored, second.stored) == (False, True)
    assert second.record == first.record
    assert model.calls == calls + 1
    assert not (second.folder / LEDGER).exists()


def test_fresh_answers_the_same_question_again(tmp_path):
    model = Failing(linear(), KeyboardInterrupt())
    data = images_for(linear(), shape=(1, 8, 8))
    evaluate(request(model, data), tmp_path)
    calls = model.calls
    again = evaluate(request(model, data), tmp_path, fresh=True)
    assert not again.stored
    assert model.calls == 2 * calls


def test_fresh_forgets_an_unfinished_run(tmp_path):
    model = conv()
    data = images_for(model)
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            request(Failing(model, KeyboardInterrupt(), after=40), data, batch_size=8), tmp_path
        )
    counted = Failing(model, KeyboardInterrupt())
    evaluate(request(counted, data, batch_size=8), tmp_path, fresh=True)
    whole = Failing(model, KeyboardInterrupt())
    evaluate(request(whole, data, batch_size=8), tmp_path / "again")
    assert counted.calls == whole.calls
