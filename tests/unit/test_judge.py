"""What counts as broken, on a model whose answers are known."""

import pytest
import torch
from oracles import Linear

from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.judging.judge import decisions, judge, judge_answers
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.oracle import Oracle

CPU = torch.device("cpu")
THREATS = {"linf": "linf:0.25", "l2": "l2:0.25", "l1": "l1:0.25"}


def bright_or_dark():
    """Class 1 where the first of four pixels is above one half.

    The margin of class 0 is 1 - 2 x.
    """
    return Oracle(
        Linear(torch.tensor([[0.0, 0, 0, 0], [2, 0, 0, 0]]), torch.tensor([0.0, -1.0])), CPU
    )


def point(*pixels):
    return torch.tensor(pixels).view(1, 1, 2, 2)


CLEAN, LABEL = point(0.375, 0.5, 0.5, 0.5), torch.tensor([0])


def data(images, labels):
    return Dataset("pixels", images, labels, tuple(range(len(images))), 2)


def verdict(candidate, threat="linf:0.25"):
    return judge(bright_or_dark(), candidate, data(CLEAN, LABEL), Threat.parse(threat))


@pytest.mark.parametrize("norm", THREATS)
def test_a_misclassified_image_inside_the_ball_is_broken(norm):
    found = verdict(point(0.625, 0.5, 0.5, 0.5), THREATS[norm])
    assert (found.broken.tolist(), found.outside.tolist(), found.prediction.tolist()) == (
        [True],
        [False],
        [1],
    )
    assert found.distance.item() == 0.25
    assert found.margin.item() == -0.25


@pytest.mark.parametrize("norm", THREATS)
def test_a_misclassified_image_outside_the_ball_is_not(norm):
    found = verdict(point(0.626, 0.5, 0.5, 0.5), THREATS[norm])
    assert (found.broken.tolist(), found.outside.tolist()) == ([False], [True])


def test_one_rounding_beyond_the_ball_is_outside():
    beyond = torch.nextafter(torch.tensor(0.625), torch.tensor(1.0)).item()
    assert verdict(point(beyond, 0.5, 0.5, 0.5)).outside.tolist() == [True]


def test_a_point_that_is_still_classified_rightly_stands():
    found = verdict(point(0.5, 0.5, 0.5, 0.5))
    assert (found.broken.tolist(), found.prediction.tolist(), found.margin.item()) == (
        [False],
        [0],
        0.0,
    )


@pytest.mark.parametrize("wild", [1.5, -0.5, float("nan"), float("inf"), -float("inf")])
def test_what_left_the_box_never_counts_and_never_reaches_the_model(wild):
    seen = []
    oracle = bright_or_dark()
    oracle.model.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    found = judge(oracle, point(wild, 0.5, 0.5, 0.5), data(CLEAN, LABEL), Threat.parse("linf:1"))
    assert (found.broken.tolist(), found.outside.tolist()) == ([False], [True])
    assert ((seen[0] >= 0) & (seen[0] <= 1)).all()


def test_a_candidate_is_judged_as_a_float32_image():
    candidate = point(0.625, 0.5, 0.5, 0.5).double() + 1e-12
    assert verdict(candidate).broken.tolist() == [True]


def test_the_clean_pass_is_a_judgement_of_the_images_themselves():
    images = torch.cat([CLEAN, point(0.75, 0.0, 0.0, 0.0)])
    found = judge(
        bright_or_dark(), images, data(images, torch.tensor([0, 0])), Threat.parse("l1:0.1")
    )
    assert found.broken.tolist() == [False, True]
    assert found.distance.tolist() == [0, 0]


def test_logits_that_are_known_are_not_asked_for_again():
    oracle = bright_or_dark()
    images = torch.cat([CLEAN, point(0.75, 0.0, 0.0, 0.0)])
    labels, threat = torch.tensor([0, 1]), Threat.parse("l2:1")
    known = judge_answers(
        oracle.logits(images)[None], torch.ones(1).double(), images, data(images, labels), threat
    )
    assert known.margin.tolist() == [0.25, 0.5]
    assert oracle.meter.forwards == 2


def test_the_ledger_keeps_a_distance_only_of_what_is_broken():
    candidates = torch.cat([point(0.625, 0.5, 0.5, 0.5), point(0.5, 0.5, 0.5, 0.5)])
    true = data(CLEAN.expand(2, -1, -1, -1), LABEL.expand(2))
    found = judge(bright_or_dark(), candidates, true, Threat.parse("linf:0.25"))
    first, second = decisions([7, 9], found)
    assert (first.index, first.broken, first.prediction, first.distance, first.margin) == (
        7,
        True,
        1,
        0.25,
        -0.25,
    )
    assert (second.index, second.broken, second.distance) == (9, False, None)
