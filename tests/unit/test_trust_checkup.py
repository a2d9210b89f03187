"""The check-up as a whole: its images, its cost, and models that fail."""

import json
from dataclasses import replace

import pytest
import torch
from broken import declared_ensemble, digits
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Failing, coin_flip, detached, images_for, linear, masked, nearest_mean
from torch import nn

from robustbench_kd.core.errors import IncompleteError, ModelError
from robustbench_kd.core.ledger import Entry
from robustbench_kd.core.plugins import components, module
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.defences import smoothed
from robustbench_kd.engine.probing.checkup import PROBES, Scope, checkup, probe_of
from robustbench_kd.engine.run.request import Extra
from robustbench_kd.engine.run.stages import plan_stages
from robustbench_kd.tensors.meter import Meter
from robustbench_kd.tensors.oracle import Oracle

SHAPE = (1, 8, 8)
THREAT = Threat.parse("linf:0.02")


def oracle_of(model):
    return Oracle(model, torch.device("cpu"))


def data_of(model=None, n=40):
    return images_for(model or linear(), n=n, shape=SHAPE)


def run(model, data=None, rows=None, **scope):
    data = data or data_of(model)
    return checkup(
        oracle_of(model), data, range(len(data)) if rows is None else rows, THREAT, Scope(**scope)
    )


def checks_of(entry):
    return {finding.check for finding in entry.findings}


def examples_of(entry):
    return {finding.check: finding.examples for finding in entry.findings}


@pytest.mark.parametrize("name", components("trust"))
def test_every_check_offers_a_function_and_says_what_it_finds(name):
    check = module("trust", name)
    offered = [kind for kind in ("probe", "search", "review", "clean") if hasattr(check, kind)]
    assert offered
    assert all(getattr(check, kind).__doc__.startswith("Returns") for kind in offered)
    assert components("trust")[name].summary


def test_an_entry_holds_findings_and_costs_and_survives_the_ledger():
    entry = run(linear())
    assert entry.stage == PROBES
    assert entry.findings == []
    assert entry.forwards > entry.backwards > 0
    assert entry.seconds > 0
    assert Entry.model_validate_json(entry.model_dump_json()) == entry


def test_passes_are_counted_as_the_model_sees_them():
    model = Counting(linear())
    oracle = oracle_of(model)
    data = data_of()
    entry = checkup(oracle, data, range(40), THREAT)
    assert entry.forwards == model.images == oracle.meter.forwards


def test_if_a_short_attack_breaks_all_of_a_few_images_nothing_else_is_probed():
    entry = checkup(
        oracle_of(linear()), data_of(), range(40), Threat.parse("linf:0.9"), Scope(scout=True)
    )
    assert checks_of(entry) == {"falls-at-once"}
    assert entry.forwards + entry.backwards <= 16 * 6
    assert checks_of(run(linear(), scout=True)) == set()


def test_a_randomized_defence_is_probed_even_if_one_draw_is_broken():
    model = declared_ensemble()
    entry = checkup(
        oracle_of(model), data_of(linear()), range(40), Threat.parse("linf:0.9"), Scope(scout=True)
    )
    assert "falls-at-once" not in checks_of(entry)


class Counting(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network
        self.images = 0

    def forward(self, images):
        self.images += len(images)
        return self.network(images)


def test_probes_of_a_robust_model_cost_at_most_fifteen_percent_of_the_standard_suite():
    model = digits("small")
    data = open_dataset("digits", split="test", limit=20)
    oracle = oracle_of(model)
    threat = Threat.parse("linf:0.02")
    correct = (oracle.logits(data.images).argmax(dim=1) == data.labels).nonzero()[:, 0].tolist()
    entry = checkup(oracle, data, correct, threat)
    stages = plan_stages(parse_suite("standard"), oracle, threat, Extra())
    standard = sum(stage.passes(threat.norm, 10) for stage in stages)
    assert entry.forwards + entry.backwards < 0.15 * standard * len(correct)
    assert entry.findings == []


def test_without_searches_a_few_dozen_passes_are_spent():
    entry = run(linear(), searches=False)
    assert entry.forwards + entry.backwards < 90 * 40


def test_progress_is_reported_after_every_pass():
    reports = []
    oracle = Oracle(linear(), torch.device("cpu"), Meter(reports.append))
    entry = checkup(oracle, data_of(), range(40), THREAT, Scope(searches=False))
    assert reports == sorted(reports)
    assert reports[-1] == entry.forwards + entry.backwards


def test_the_same_images_are_probed_whatever_their_order():
    data = data_of(masked())
    backwards = data.take(torch.arange(39, -1, -1))
    first = run(masked(), data, size=10, searches=False)
    second = run(masked(), backwards, size=10, searches=False)
    assert examples_of(first) == examples_of(second)
    assert len(examples_of(first)["zero-gradients"]) == 10


def test_another_seed_probes_other_images():
    first = run(masked(), size=8, searches=False, seed=0)
    second = run(masked(), size=8, searches=False, seed=1)
    assert examples_of(first) != examples_of(second)


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(2, 12))
def test_no_more_images_are_taken_than_there_are_or_than_the_limit(size, n):
    model = Counting(linear())
    run(model, data_of(linear(), n=n), size=size, searches=False)
    assert model.images <= 90 * min(size, n)


def test_only_the_given_rows_are_probed():
    entry = run(coin_flip(), data_of(linear()), rows=[3, 5, 8], searches=False)
    for examples in examples_of(entry).values():
        assert set(examples) <= {103, 105, 108}


@pytest.mark.parametrize("rows", [[], [0, 1]])
def test_without_a_correctly_classified_image_nothing_is_probed(rows):
    entry = run(linear(), images_for(linear(), n=4, wrong=2, shape=SHAPE), rows=rows)
    assert checks_of(entry) == {"no-sample"}


def test_a_model_without_gradients_is_probed_as_far_as_possible():
    assert checks_of(run(detached())) == {"zero-gradients"}


def test_a_model_that_fails_in_the_backward_pass_is_a_finding_and_no_crash():
    class Failure(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, images):
            return images.clone()

        @staticmethod
        def backward(_ctx, _gradient):
            raise NotImplementedError("no backward here")

    entry = run(nn.Sequential(Applied(Failure), linear()).eval(), data_of(linear()))
    assert checks_of(entry) == {"zero-gradients"}
    assert "no backward here" in entry.findings[0].message


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function.apply(images)


def test_a_model_that_fails_on_images_is_an_error():
    with pytest.raises(ModelError, match="failed on 40 images in \\[0, 1\\]: bad shape"):
        run(Failing(linear(), ValueError("bad shape"), after=0).eval(), data_of(linear()))


def test_fewer_images_are_taken_if_memory_runs_out():
    entry = run(Failing(linear(), torch.OutOfMemoryError(), most=10).eval(), data_of(linear()))
    assert entry.findings == []
    assert entry.forwards > 0


def test_memory_that_holds_no_image_is_an_incomplete_run():
    with pytest.raises(IncompleteError):
        run(Failing(linear(), torch.OutOfMemoryError(), most=0).eval(), data_of(linear()))


def test_the_random_state_is_not_changed():
    before = torch.random.get_rng_state()
    run(linear())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_are_compared_in_single(dtype):
    model = nn.Sequential(linear(), Cast(dtype)).eval()
    probe = probe_of(oracle_of(model), data_of(model), THREAT, Scope())
    assert probe.logits.dtype is torch.float32


class Cast(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, values):
        return values.to(self.dtype)


# Randomized and abstaining defences


@pytest.mark.parametrize(
    "make", [declared_ensemble, lambda: smoothed.assemble([nearest_mean()], sigma=0.05).eval()]
)
def test_a_randomized_defence_is_asked_about_one_draw_for_each_image(make):
    probe = probe_of(oracle_of(make()), open_dataset("digits", limit=30), THREAT, Scope())
    assert torch.equal(probe.again, probe.logits)
    rows = torch.tensor([5, 2, 2])
    answers = probe.ask(probe.images[rows], rows)
    torch.testing.assert_close(answers, probe.logits[rows], rtol=1e-5, atol=1e-5)


def test_an_ensemble_answers_with_the_member_that_was_drawn():
    members = [digits("plain"), digits("teacher"), digits("small")]
    data = open_dataset("digits", limit=60)
    probe = probe_of(oracle_of(declared_ensemble()), data, THREAT, Scope())
    answers = torch.stack([member(probe.images) for member in members])
    same = (answers - probe.logits).abs().amax(dim=2) < 1e-4
    assert same.any(dim=0).all()
    assert same.sum(dim=1).min() > 5


class Careful(nn.Module):
    """Rejects images if it is not certain."""

    abstains = True

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        logits = self.network(images)
        return torch.cat([logits, logits.amax(dim=1, keepdim=True) - 1e-3], dim=1)


def test_a_rejection_counts_as_correct():
    data = data_of(linear())
    probe = probe_of(oracle_of(Careful(linear()).eval()), data, THREAT, Scope())
    assert probe.logits.shape[1] == 10
    wrong = replace(data, labels=(data.labels + 1) % 10)
    entry = run(Careful(linear()).eval(), wrong)
    assert checks_of(entry) == {"no-sample"}


def test_findings_are_strict_json():
    entry = run(coin_flip(), data_of(linear()), searches=False)
    assert entry.findings
    json.loads(entry.model_dump_json(), parse_constant=pytest.fail)
