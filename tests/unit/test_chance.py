"""Chance that no key decides is found, and evaluated as what it is."""

import itertools
import random
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyautoattack
import pytest
import torch
from broken import digits
from maskings import CHANCES, DeepFront, MemberPerCall, MemberPerImage, Noisy, NoisyInNumpy
from oracles import budgets, request
from torch import nn

from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.core.records import Severity
from robustbench_kd.core.shards import Shard
from robustbench_kd.core.threat import Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.anatomy.chance import Unkeyed, find_chance, finding
from robustbench_kd.engine.evaluate import evaluate, evaluate_shard
from robustbench_kd.engine.native.patience import Patience
from robustbench_kd.engine.probing.anatomy import examine
from robustbench_kd.engine.probing.undeclared import first_logits, with_chance
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.defence import Key
from robustbench_kd.tensors.oracle import Oracle
from robustbench_kd.tensors.seeds import global_state, seeded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    return open_dataset("digits").take(torch.arange(40))


def key(n, stream="score"):
    return Key(0, stream, ids=torch.arange(n), draw=torch.zeros(n, dtype=torch.int64))


def chance_of(model, data):
    return find_chance(model.eval(), data.images[:8])


def fronts(images):
    return [DeepFront(digits("teacher"), images, seed=seed, width=8) for seed in range(3)]


class OwnGenerator(nn.Module):
    """Holds a generator, which the global seed does not reach."""

    def __init__(self, generator):
        super().__init__()
        self.network = digits("teacher")
        self.generator = generator

    def forward(self, images):
        if isinstance(self.generator, torch.Generator):
            noise = torch.randn(images.shape, generator=self.generator)
        elif isinstance(self.generator, random.Random):
            noise = self.generator.random()
        else:
            noise = torch.from_numpy(self.generator.normal(size=tuple(images.shape))).float()
        return self.network(images + 0.1 * noise)


class Counting(nn.Module):
    """Calls differ by their number: no seed repeats them."""

    def __init__(self, period=1):
        super().__init__()
        self.network = digits("teacher")
        self.calls = itertools.count()
        self.period = period

    def forward(self, images):
        calls, rest = divmod(next(self.calls), self.period)
        return self.network(images + 0.02 * (0 if rest else 1 + calls % 7))


@pytest.mark.parametrize(
    ("name", "rows_differ"),
    [
        ("noise", True),
        ("noise in numpy", True),
        ("dropout", True),
        ("vote of noisy copies", True),
        ("random resize and pad", False),
    ],
)
def test_chance_is_found_with_the_rows_that_share_it(name, rows_differ, data):
    model = CHANCES[name](digits("teacher"))
    before = global_state()
    chance = chance_of(model, data)
    assert (chance.rows_differ, chance.repeats) == (rows_differ, True)
    assert global_state() == before
    assert finding(chance).severity is Severity.INFO


@pytest.mark.parametrize("name", ["teacher", "plain", "small", "involution"])
def test_an_honest_network_has_none(name, data):
    assert chance_of(digits(name), data) is None


def test_a_finite_ensemble_behind_chance_is_counted(data):
    chance = chance_of(MemberPerCall([digits("teacher"), digits("plain"), digits("small")]), data)
    assert len(chance.seeds) == 3
    assert sum(chance.shares) == pytest.approx(1)
    assert min(chance.shares) > 0.1


def test_members_drawn_for_each_image_are_no_finite_ensemble_of_batches(data):
    chance = chance_of(MemberPerImage([digits("teacher"), digits("plain")]), data)
    assert chance.rows_differ
    assert chance.seeds == ()


@pytest.mark.parametrize(
    "generator", [torch.Generator(), np.random.default_rng(0), random.Random(0)], ids=str
)
def test_generators_of_the_model_itself_are_seeded_too(generator, data):
    chance = chance_of(OwnGenerator(generator), data)
    assert chance.repeats


def test_a_call_that_differs_now_and_then_is_not_repeatable(data):
    model = Counting(period=5)
    assert not chance_of(model, data).repeats


def test_what_no_seed_repeats_is_said(data):
    chance = chance_of(Counting(), data)
    assert not chance.repeats
    assert (finding(chance).check, finding(chance).severity) == (
        "chance-not-repeatable",
        Severity.RED,
    )


@pytest.mark.parametrize("make", [Noisy, NoisyInNumpy, CHANCES["random resize and pad"]])
def test_the_draws_of_an_image_do_not_depend_on_the_others(make, data):
    model = make(digits("teacher")).eval()
    defence = Unkeyed(model, chance_of(model, data))
    together = defence.own_draws(data.images[:6], key(6), 5)
    rows = torch.tensor([4, 1])
    apart = defence.own_draws(data.images[rows], key(6).take(rows), 5)
    assert torch.allclose(together[:, rows], apart, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_streams_share_no_draws(data):
    model = Noisy(digits("teacher")).eval()
    defence = Unkeyed(model, chance_of(model, data))
    score = defence.own_draws(data.images[:2], key(2), 3)
    judge = defence.own_draws(data.images[:2], key(2, "judge"), 3)
    assert not torch.allclose(score, judge, atol=1e-3)


def test_a_seed_leaves_all_generators_as_they_were():
    model = OwnGenerator(torch.Generator())
    before = (global_state(), model.generator.get_state())
    with seeded(3, model):
        first = (torch.rand(1), np.random.random(), random.random())  # noqa: NPY002  # global
    with seeded(3, model):
        again = (torch.rand(1), np.random.random(), random.random())  # noqa: NPY002  # global
    assert first == again
    assert global_state() == before[0]
    assert torch.equal(model.generator.get_state(), before[1])


@pytest.mark.parametrize("make", [MemberPerCall, MemberPerImage])
def test_members_behind_masking_front_ends_are_attacked_past_them(make, data):
    train = open_dataset("digits", split="train").images[:300]
    oracle, _ = with_chance(Oracle(make(fronts(train)).eval(), CPU), data.images)
    anatomy = examine(oracle, data, Threat.parse("linf:0.2"), seed=0)
    assert anatomy.found[0].broken > 1.5 * anatomy.own.broken
    assert "straight-through" in anatomy.found[0].surface.name


def test_arc_attacks_the_members_that_hide_behind_chance(data):
    model = MemberPerCall([digits("teacher"), digits("plain")]).eval()
    defence = Unkeyed(model, chance_of(model, data))
    attack = defence.attacks()["arc"](defence, norm="linf", eps=0.2, seed=0)
    points = attack(data.images[:8], data.labels[:8])
    assert ((points - data.images[:8]).abs() <= 0.2 + 1e-6).all()
    right = model.networks[1](points).argmax(dim=1) == data.labels[:8]
    assert right.float().mean() < 0.5


# A coin decides which half of the image is looked at: see `test_randomized.py`.
EPS = 0.1
MEANS = [(0.9, 0.9), (0.55, 0.9), (0.55, 0.55), (0.9, 0.58)]
TRUTH = (1 + 0.5 + 0 + 0.5) / 4


class HiddenCoin(nn.Module):
    """Looks at one of two halves, as `torch.rand` falls."""

    def forward(self, images):
        flat = images.flatten(1)
        halves = torch.stack([flat[:, :4].sum(dim=1), flat[:, 4:].sum(dim=1)])
        coin = (torch.rand(len(images)) < 0.5).long()
        bright = halves[coin, torch.arange(len(images))]
        return torch.stack([torch.full_like(bright, 2.0), bright], dim=1)


def halves(times):
    means = torch.tensor(MEANS * times)
    images = means.repeat_interleave(4, dim=1).view(-1, 1, 2, 4)
    n = len(means)
    return Dataset("halves", images, torch.ones(n, dtype=torch.int64), tuple(range(n)), 2)


def test_the_interval_of_a_hidden_coin_covers_its_truth(tmp_path):
    data = halves(times=15)
    asked = request(HiddenCoin(), data, threat=f"linf:{EPS}", suite="apgd-ce+adaptive")
    record = evaluate(asked, tmp_path).record
    assert record.robust.ci_low < TRUTH < record.robust.ci_high
    assert record.robust.value == pytest.approx(TRUTH, abs=0.03)
    assert record.robust_draws.draws == 100
    assert "hidden-chance" in {found.check for found in record.findings}


def test_the_number_of_the_package_is_not_the_truth_of_a_hidden_coin(tmp_path):
    """It lets an image fall at its first unlucky draw."""
    data = halves(times=40)
    data = data.take(torch.arange(1, len(data), 4))  # half of the answers stay right
    asked = request(HiddenCoin(), data, threat=f"linf:{EPS}", suite="apgd-ce,square")
    with budgets(pyautoattack):
        package = evaluate(replace(asked, engine="autoattack"), tmp_path).record
    assert package.robust.ci_high < 0.5
    assert package.robust_draws.mean.value == pytest.approx(0.5, abs=0.05)


def test_the_score_of_an_image_is_the_same_in_every_data_set(tmp_path):
    asked = request(HiddenCoin(), halves(times=1), threat=f"linf:{EPS}", suite="apgd-ce")
    clean = evaluate(asked, tmp_path / "few").record.clean_draws.mean.value
    assert clean == pytest.approx(1.0)
    again = evaluate(replace(asked, batch_size=1), tmp_path / "one").record
    assert again.clean_draws.mean.value == clean


def test_shards_of_hidden_chance_are_refused(tmp_path):
    asked = request(HiddenCoin(), halves(times=2), threat=f"linf:{EPS}", suite="apgd-ce")
    with pytest.raises(UsageError, match="use one worker"):
        evaluate_shard(asked, tmp_path, Shard(1, 2))


class Output(NamedTuple):
    """What a model returns whose author thought of features first."""

    embedding: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize(
    "pack",
    [
        lambda logits: {"logits": logits, "features": logits[:, :3]},
        lambda logits: {"scores": logits, "attention": None},
        lambda logits: (logits, None),
        lambda logits: [torch.zeros(len(logits), 64), logits],
        lambda logits: Output(torch.zeros_like(logits), logits),
    ],
)
def test_logits_are_picked_where_it_is_plain_which_they_are(pack, data):
    network = digits("teacher")

    class Packed(nn.Module):
        def forward(self, images):
            return pack(network(images))

    oracle, logits = first_logits(Oracle(Packed(), CPU), data.images[:1], classes=10)
    assert torch.equal(logits, network(data.images[:1]))
    assert len(oracle.logits(data.images)) == len(data)


def test_logits_are_not_guessed(data):
    class Twice(nn.Module):
        def forward(self, images):
            logits = images.flatten(1)[:, :10]
            return logits, 2 * logits

    with pytest.raises(ModelError, match=r"0 \(1, 10\), 1 \(1, 10\).*register_forward_hook"):
        first_logits(Oracle(Twice(), CPU), data.images[:1], classes=10)


def test_rows_rest_twice_as_long_after_every_judgement_in_vain():
    patience = Patience(2)
    rows = np.array([1])
    rests = []
    for _ in range(3):
        steps = 0
        while patience.resting(rows).any():
            steps += 1
        rests.append(steps)
        patience.judged(rows, np.array([False]))
    assert rests == [0, 0, 1]
    patience.judged(rows, np.array([True]))
    assert not patience.resting(rows).any()
