"""A run that stops once a claim is settled says so, and errs as seldom as it promises."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import Failing, conv, images_for, request

from robustbench_kd.analysis.runs import read_run
from robustbench_kd.core.claim import claim_text, parse_claim
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.statistics import settled
from robustbench_kd.defences.smoothed import assemble
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.engine.record.early_stop import chunks
from robustbench_kd.tensors.contracts import Dataset


def numbered(n):
    return Dataset(
        "numbers", torch.zeros(n, 1, 1, 1), torch.zeros(n, dtype=torch.int64), tuple(range(n)), 2
    )


def asked(at_least, n=200, **options):
    model = conv()
    return request(model, images_for(model, n=n), threat="linf:0.01", at_least=at_least, **options)


@pytest.mark.parametrize(
    ("text", "value"),
    [("robust>=0.45", 0.45), (" robust >= .5 ", 0.5), ("robust>=45%", 0.45), ("robust>=1", 1.0)],
)
def test_a_claim_is_a_fraction_or_a_percentage(text, value):
    assert parse_claim(text) == value


@pytest.mark.parametrize(
    "text", ["", "0.45", "robust>0.45", "clean>=0.9", "robust>=0", "robust>=45", "robust>=nan"]
)
def test_other_claims_are_refused(text):
    with pytest.raises(UsageError, match=r"expected a claim such as 'robust>=0.45'"):
        parse_claim(text)


@given(st.integers(1, 10**6))
def test_a_claim_is_read_as_it_is_written(millionths):
    assert parse_claim(claim_text(millionths / 10**6)) == millionths / 10**6


def test_the_order_is_random_and_depends_on_seed_and_ids_alone():
    first, other = (
        [int(row) for rows in chunks(numbered(300), seed) for row in rows] for seed in (0, 1)
    )
    assert sorted(first) == sorted(other) == list(range(300))
    assert first != other
    data = numbered(300).take(torch.arange(299, -1, -1))
    assert [data.ids[row] for rows in chunks(data, 0) for row in rows] == first


@pytest.mark.parametrize("successes", [440, 449, 451, 500])
def test_asked_after_every_chunk_it_is_wrong_in_at_most_one_of_twenty_orders(successes):
    data, wrong, repetitions = numbered(1000), 0, 400
    for seed in range(repetitions):
        n = right = 0
        for rows in chunks(data, seed):
            n, right = n + len(rows), right + int((rows < successes).sum())
            if (answer := settled(right, n, 0.45, population=1000)) is not None:
                wrong += answer != (successes >= 450)
                break
        else:
            raise AssertionError("all examples together leave nothing open")
    assert wrong <= 0.05 * repetitions + 3 * math.sqrt(0.05 * 0.95 * repetitions)


@pytest.mark.parametrize(("at_least", "holds"), [(0.05, True), (0.999, False)])
def test_a_clear_claim_is_settled_after_some_examples_and_the_record_says_so(
    at_least, holds, tmp_path
):
    outcome = evaluate(asked(at_least), tmp_path)
    claim, run = outcome.record.claim, read_run(outcome.folder)
    assert (claim.text, claim.holds, claim.population) == (f"robust>={at_least}", holds, 200)
    assert claim.evaluated == len(run.examples) == outcome.record.robust.n < 200
    assert outcome.record.identity.mode == f"until robust>={at_least}"
    assert outcome.record.missed is None


def test_it_is_ranked_by_itself_and_its_examples_are_those_of_the_full_run(tmp_path):
    some = evaluate(asked(0.05), tmp_path)
    full = evaluate(asked(None), tmp_path)
    assert some.record.protocol_hash != full.record.protocol_hash
    known = read_run(full.folder).examples
    assert all(known[index] == row for index, row in read_run(some.folder).examples.items())


def test_the_accuracy_itself_is_settled_by_all_examples(tmp_path):
    exact = evaluate(asked(None), tmp_path).record.robust.value
    claim = evaluate(asked(exact), tmp_path).record.claim
    assert (claim.holds, claim.evaluated) == (True, 200)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    data, model = asked(0.05).data, Failing(conv(), KeyboardInterrupt(), after=20)
    stopped = request(model, data, threat="linf:0.01", at_least=0.05, batch_size=32)
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopped, tmp_path)
    model.after = 10**9
    resumed, whole = (evaluate(one, tmp_path) for one in (stopped, asked(0.05, batch_size=32)))
    assert resumed.record.claim == whole.record.claim


def test_of_chance_and_samples_nothing_is_settled(tmp_path):
    with pytest.raises(UsageError, match="both take samples"):
        evaluate(asked(0.5, suite="fast"), tmp_path)
    with pytest.raises(UsageError, match="one radius"):
        evaluate(asked(0.5, smaller=tmp_path), tmp_path)
    model = assemble([conv()])
    with pytest.raises(UsageError, match="the defence is randomized: evaluate all of them"):
        evaluate(request(model, images_for(conv()), at_least=0.5), tmp_path)
