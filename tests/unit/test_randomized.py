"""Randomized defences whose expected robust accuracy is known in closed form."""

import csv
import math
from dataclasses import replace
from statistics import NormalDist

import pyautoattack
import pytest
import torch
from oracles import Linear, budgets, request
from torch import nn

from robustbench_kd.core.rundir import DRAWS
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.engine.judging import rescore as scoring
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.defence import Surface

EPS = 0.1
SHORT = {"apgd-ce": {"steps": 20}, "apgd-margin": {"steps": 20}, "square": {"queries": 50}}


def half(first):
    """Two classes, told apart by one half of eight pixels alone.

    Class 1 where their mean is above one half.
    """
    weight = torch.zeros(2, 8)
    weight[1, :4] = float(first)
    weight[1, 4:] = float(not first)
    return Linear(weight, torch.tensor([0.0, -2.0])).eval()


class CoinFlip(nn.Module):
    """Answers by its first member with probability `weights[0]`, else by its second."""

    def __init__(self, heads=0.5):
        super().__init__()
        self.parts = nn.ModuleList([half(first=True), half(first=False)])
        self.register_buffer("weights", torch.tensor([heads, 1 - heads]))

    def members(self):
        return list(self.parts)

    def draw(self, images, key):
        heads = key.uniform("member", 1) < self.weights[0]
        return torch.where(heads, self.parts[0](images), self.parts[1](images))

    def surfaces(self):
        def both(images, _key):
            return torch.stack([part(images) for part in self.parts])

        return [
            Surface(name="expected", answer=both, weights=self.weights, passes=2, same_outputs=True)
        ]


class Blurred(nn.Module):
    """A linear classifier behind Gaussian noise.

    A draw is right with probability Phi(margin / (sigma |w|)).
    """

    def __init__(self, sigma):
        super().__init__()
        self.inner, self.sigma = half(first=True), sigma

    def draw(self, images, key):
        noise = key.normal("noise", images[0].numel()).view_as(images)
        return self.inner(images + self.sigma * noise)


def bright(means):
    """Images of class 1, 2 x 4 pixels; each half is grey, by the given mean."""
    images = torch.tensor(means).repeat_interleave(4, dim=1).view(-1, 1, 2, 4)
    return Dataset(
        "halves", images, torch.ones(len(means), dtype=torch.long), tuple(range(len(means))), 2
    )


def asked(model, data, suite="apgd-ce", **options):
    found = request(model, data, threat=f"linf:{EPS}", **options)
    suite = parse_suite(suite)
    adaptive = suite.adaptive and replace(
        suite.adaptive, budgets=SHORT, norms={}, surfaces={}, attacks=("apgd-margin", "square")
    )
    return replace(
        found, suite=replace(suite, budgets=SHORT, norms={}, surfaces={}, adaptive=adaptive)
    )


# A half falls where its mean is less than the radius above one half; the third image is wrong by
# its first half when clean.
MEANS = [(0.9, 0.9), (0.55, 0.9), (0.45, 0.9), (0.55, 0.55), (0.9, 0.58)]
WORST = {0.5: [1, 0.5, 0.5, 0, 0.5], 0.25: [1, 0.75, 0.75, 0, 0.25]}


@pytest.mark.parametrize("heads", WORST)
def test_a_finite_ensemble_is_scored_exactly(heads, tmp_path):
    record = evaluate(asked(CoinFlip(heads), bright(MEANS), "adaptive"), tmp_path).record
    expected = WORST[heads]
    assert record.robust.value == pytest.approx(sum(expected) / 5, abs=1e-6)
    assert record.clean.value == pytest.approx((4 + (1 - heads)) / 5, abs=1e-6)
    assert (record.robust_draws.exact, record.robust_draws.draws) == (True, 2)
    assert record.robust_draws.all_correct.value == pytest.approx(0.2)
    assert record.clean_draws.all_correct.value == pytest.approx(0.8)


def test_attacks_that_see_one_draw_at_a_time_never_do_better_than_the_truth(tmp_path):
    record = evaluate(asked(CoinFlip(0.25), bright(MEANS)), tmp_path).record
    assert record.robust.value >= sum(WORST[0.25]) / 5 - 1e-6


def test_the_share_of_wrong_answers_is_kept_for_every_example(tmp_path):
    outcome = evaluate(asked(CoinFlip(0.25), bright(MEANS), "adaptive"), tmp_path)
    with (outcome.folder / DRAWS).open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["clean_wrong"]) for row in rows] == pytest.approx(
        [0, 0, 0.25, 0, 0], abs=1e-6
    )
    assert [float(row["wrong"]) for row in rows] == pytest.approx(
        [0, 0.25, 0.25, 1, 0.75], abs=1e-6
    )


def test_the_number_of_the_package_is_that_of_a_single_draw_and_shown_with_the_expected_one(
    tmp_path,
):
    """Half of the answers stay right on every image.

    The package lets an image fall at its first unlucky draw.
    """
    data = bright([(0.55, 0.9)] * 60)
    with budgets(pyautoattack):
        record = evaluate(
            asked(CoinFlip(), data, "apgd-ce,square", engine="autoattack"), tmp_path
        ).record
    assert record.robust_draws.mean.value == pytest.approx(0.5, abs=0.05)
    assert record.robust.ci_high < 0.5


@pytest.fixture(scope="module")
def blurred():
    generator = torch.Generator().manual_seed(0)
    means = 0.5 + 0.3 * torch.rand(60, generator=generator)
    return bright([(float(mean), 0.5) for mean in means]), means


SIGMA = 0.2


def share_right(means, eps):
    """The weight of the half is 1 on four pixels.

    The margin is 4 (mean - 1/2 - eps) and the noise in it 2 sigma.
    """
    return [NormalDist().cdf(4 * (float(mean) - 0.5 - eps) / (2 * SIGMA)) for mean in means]


def test_a_noisy_defence_is_scored_by_fresh_draws(blurred, tmp_path):
    data, means = blurred
    record = evaluate(asked(Blurred(SIGMA), data, "adaptive"), tmp_path).record
    clean, robust = (share_right(means, eps) for eps in (0, EPS))
    for found, expected in ((record.clean, clean), (record.robust, robust)):
        spread = math.sqrt(sum(share * (1 - share) for share in expected) / 100) / len(expected)
        assert found.value == pytest.approx(sum(expected) / len(expected), abs=5 * spread)
    assert (record.robust_draws.exact, record.robust_draws.draws) == (False, scoring.DRAWS)


def test_what_the_standard_attacks_left_is_scored_by_the_same_draws_as_what_all_left(
    blurred, tmp_path
):
    data, _ = blurred
    alone = evaluate(asked(Blurred(SIGMA), data), tmp_path / "alone").record
    both = evaluate(asked(Blurred(SIGMA), data, "apgd-ce+adaptive"), tmp_path / "both").record
    assert both.standard == alone.robust
    assert both.stages[1].accuracy == alone.stages[1].accuracy != alone.robust


def test_scoring_the_same_images_with_another_key_changes_the_number_within_the_noise_only(
    blurred, tmp_path, monkeypatch
):
    data, means = blurred
    first = evaluate(asked(Blurred(SIGMA), data), tmp_path / "first").record.robust.value
    monkeypatch.setattr(scoring, "SCORE_STREAM", "another")
    second = evaluate(asked(Blurred(SIGMA), data), tmp_path / "second").record.robust.value
    spread = math.sqrt(
        2 * sum(share * (1 - share) for share in share_right(means, EPS)) / 100
    ) / len(means)
    assert 0 < abs(first - second) < 5 * spread


@pytest.mark.parametrize("size", [1, 7])
def test_the_batch_size_changes_no_expectation(blurred, tmp_path, size):
    data, _ = blurred
    small = data.take(torch.arange(12))
    records = [
        evaluate(asked(Blurred(SIGMA), small, batch_size=batch), tmp_path / str(batch)).record
        for batch in (250, size)
    ]
    assert records[0].robust == records[1].robust


def test_an_image_that_one_clean_draw_gets_wrong_is_attacked_all_the_same(tmp_path):
    record = evaluate(asked(CoinFlip(), bright([(0.45, 0.55)])), tmp_path).record
    assert record.clean.value == pytest.approx(0.5)
    assert record.robust.value == pytest.approx(0, abs=1e-6)
