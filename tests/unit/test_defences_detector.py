"""The detector: scores of linear models by hand, thresholds, the rejecting column, stand-ins."""

import math

import pytest
import torch
from oracles import Linear
from torch import nn

from robustbench_kd.core.errors import UsageError
from robustbench_kd.defences.detector import assemble
from robustbench_kd.tensors.defence import Abstaining, Key

SHAPE = (1, 8, 8)


def line(n=30, spread=0.02):
    """Two classes separated by `w x + b`, and images in the middle of the box on both sides."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, generator=generator)
    points = 0.5 + spread * torch.randn(n, *SHAPE, generator=generator)
    bias = torch.tensor([-0.5 * weight.sum(), 0.0])
    part = Linear(torch.stack([weight, torch.zeros(64)]), bias)
    return part.requires_grad_(False), points


class Counting(nn.Module):
    """Counts the images of all its calls."""

    def __init__(self, part):
        super().__init__()
        self.part = part
        self.count = 0

    def forward(self, images):
        self.count += len(images)
        return self.part(images)


def several(classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, 64, generator=generator)
    return Linear(weight, torch.zeros(classes)).requires_grad_(False)


def images(n=40, seed=1):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def key_of(n, seed=0):
    return Key(seed, "test", ids=torch.arange(n), draw=torch.zeros(n, dtype=torch.int64))


def detector(part=None, **arguments):
    small = {"sigma": 0.1, "lr_t": 0.006, "lr_u": 0.3, "radius": 0.3, "steps_t": 12, "steps_u": 12}
    return assemble([part or several()], **{**small, **arguments})


def fit(defence, n=200):
    defence.fit(images(3), torch.zeros(3), images(n, 2), torch.zeros(n))
    return defence


def surface(defence, name):
    return next(one for one in defence.surfaces() if one.name == name)


def steps_by_hand(margin, slope, rate, cap, *, targeted):
    """Counts steps until w x + b, the only number that matters, changes its sign."""
    size = abs(margin)
    taken = 0
    while size > 0 and taken < cap:
        confidence = 1 / (1 + math.exp(-size))
        size -= rate * slope * (confidence if targeted else 1 - confidence)
        taken += 1
    return taken


@pytest.mark.parametrize(("criterion", "rate"), [("targeted", 0.002), ("untargeted", 0.003)])
def test_steps_are_counted_until_the_prediction_changes(criterion, rate):
    part, points = line()
    defence = detector(
        part, criteria=[criterion], lr_t=rate, lr_u=rate, radius=1.0, steps_t=40, steps_u=40
    )
    slope = part.weight[0].square().sum().item()
    margins = part(points)[:, 0] - part(points)[:, 1]
    expected = []
    for margin in margins.tolist():
        targeted = criterion == "targeted"
        expected.append(steps_by_hand(margin, slope, rate, 40, targeted=targeted))
    scores = defence.scores(points, key_of(30))
    assert scores[:, 0].tolist() == expected
    assert len(set(expected)) > 4


def test_steps_stay_within_the_radius():
    """Images further away than the radius (in the dual norm) never change; all others do."""
    part, points = line(spread=0.05)
    radius = 0.004
    defence = detector(part, criteria=["untargeted"], lr_u=1.0, radius=radius, steps_u=200)
    distance = (part(points)[:, 0] - part(points)[:, 1]).abs() / part.weight[0].abs().sum()
    found = defence.scores(points, key_of(30))[:, 0]
    assert (distance < radius).any()
    assert (found[distance > 1.01 * radius] == 200).all()
    assert (found[distance < 0.9 * radius] < 200).all()


def test_rows_that_have_changed_take_no_more_steps():
    part, points = line()
    counting = Counting(part)
    defence = detector(counting, criteria=["targeted"], lr_t=0.002, radius=1.0, steps_t=40)
    logits = part(points)
    score = defence.criteria[0].score(counting, points, logits, key_of(30))
    assert counting.count == int((score + 1).clamp(max=40).sum())


def test_targets_are_drawn_from_all_other_classes():
    part = several(4)
    points = images(1).repeat(600, 1, 1, 1)
    targeted = detector(part, criteria=["targeted"]).criteria[0]
    prediction = part(points)[0].argmax()
    counts = targeted._followed_classes(part(points), key_of(600)).bincount(minlength=4)
    assert counts[prediction] == 0
    assert ((counts - 200).abs() < 4 * math.sqrt(600 * 2 / 9))[torch.arange(4) != prediction].all()


def test_noise_is_scored_by_the_change_of_all_probabilities():
    part = several()
    key = key_of(40)
    noisy = images() + 0.1 * key.normal("noise", 64).view(-1, *SHAPE)
    expected = (part(noisy).softmax(dim=1) - part(images()).softmax(dim=1)).abs().sum(dim=1)
    torch.testing.assert_close(detector(criteria=["noise"]).scores(images(), key)[:, 0], expected)


def test_scores_stand_in_the_order_of_the_criteria():
    defence = detector(criteria=["untargeted", "noise"])
    both = defence.scores(images(), key_of(40))
    for column, name in enumerate(["untargeted", "noise"]):
        alone = detector(criteria=[name]).scores(images(), key_of(40))[:, 0]
        torch.testing.assert_close(both[:, column], alone)


def test_it_abstains_by_one_column_more():
    defence = detector()
    assert isinstance(defence, Abstaining)
    assert defence.abstains
    logits = defence.draw(images(), key_of(40))
    assert torch.equal(logits[:, :5], several()(images()))


def test_nothing_is_rejected_before_it_is_fitted():
    assert (detector().draw(images(), key_of(40)).argmax(dim=1) != 5).all()


@pytest.mark.parametrize("criteria", [["noise"], ["targeted"], ["noise", "targeted", "untargeted"]])
def test_the_last_column_wins_exactly_if_a_score_is_above_its_threshold(criteria):
    defence = fit(detector(criteria=criteria, fpr=0.4))
    scores = defence.scores(images(100), key_of(100))
    fired = (scores > defence.thresholds).any(dim=1)
    rejected = defence.draw(images(100), key_of(100)).argmax(dim=1) == 5
    assert torch.equal(rejected, fired)
    assert 0 < fired.sum() < 100


def test_a_score_at_its_threshold_is_accepted_and_the_next_one_above_is_not():
    part = several()
    # A difference of one unit in the last place of the score is lost beside such logits.
    part.bias.data += 1000
    defence = detector(part, criteria=["noise"])
    score = defence.scores(images(), key_of(40))[7]
    defence.thresholds.copy_(score)
    assert defence.draw(images(), key_of(40))[7].argmax() != 5
    defence.thresholds.copy_(torch.nextafter(score, torch.zeros(1)))
    assert defence.draw(images(), key_of(40))[7].argmax() == 5


def test_the_gap_of_the_column_is_the_largest_excess():
    defence = detector(criteria=["noise", "targeted"])
    defence.thresholds.copy_(torch.tensor([0.5, 6.0]))
    scores = defence.scores(images(), key_of(40))
    logits = defence.draw(images(), key_of(40))
    expected = torch.maximum((scores[:, 0] - 0.5) / 2, (scores[:, 1] - 6) / 12)
    torch.testing.assert_close(
        logits[:, 5] - logits[:, :5].amax(dim=1), expected, rtol=0, atol=0.01
    )


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.2, 1.0])
def test_the_largest_allowed_number_of_clean_images_is_rejected(fpr):
    n = 200
    defence = detector(fpr=fpr)
    fit(defence, n)
    ids = torch.arange(n)
    scores = defence.scores(images(n, 2), Key(0, "fit", ids=ids, draw=torch.zeros_like(ids)))

    def rejection_rate(thresholds):
        return (scores > thresholds).any(dim=1).double().mean().item()

    rejected = rejection_rate(defence.thresholds)
    assert rejected <= fpr
    ordered = scores.sort(dim=0, descending=True).values
    rates = [rejection_rate(thresholds) for thresholds in ordered]
    assert rejected == pytest.approx(max(rate for rate in rates if rate <= fpr))
    if fpr in {0.05, 0.2}:
        assert rejected > 0


def test_each_criterion_alone_would_reject_as_many_of_untied_scores():
    defence = fit(detector(criteria=["noise"], fpr=0.1))
    ids = torch.arange(200)
    scores = defence.scores(images(200, 2), Key(0, "fit", ids=ids, draw=torch.zeros_like(ids)))
    assert (scores > defence.thresholds).sum() == 20


def test_new_images_are_rejected_about_as_often():
    defence = fit(detector(fpr=0.2), n=400)
    rejected = (defence.draw(images(400, 9), key_of(400)).argmax(dim=1) == 5).float().mean().item()
    assert rejected == pytest.approx(0.17, abs=0.08)


def test_steps_leave_no_graph_and_need_none():
    defence = detector(criteria=["targeted", "untargeted"])
    with torch.no_grad():
        quiet = defence.scores(images(), key_of(40))
    points = images().requires_grad_()
    loud = defence.scores(points, key_of(40))
    assert not loud.requires_grad
    assert torch.equal(loud, quiet)
    assert points.grad is None


def test_a_draw_has_the_gradient_of_the_noise_criterion():
    defence = detector(criteria=["noise", "targeted"])
    defence.thresholds.copy_(torch.tensor([0.1, 12.0]))
    points = images().requires_grad_()
    logits = defence.draw(points, key_of(40))
    (found,) = torch.autograd.grad(
        (logits[:, 5] - logits[:, :5].amax(dim=1)).sum(), points, retain_graph=True
    )
    (expected,) = torch.autograd.grad(defence.scores(points, key_of(40))[:, 0].sum() / 2, points)
    higher = (defence.scores(points, key_of(40))[:, 0] - 0.1) / 2 > 0
    assert higher.any()
    torch.testing.assert_close(found[higher], expected[higher], rtol=1e-3, atol=1e-5)


def test_the_classifier_alone_never_rejects():
    defence = fit(detector(fpr=1.0))
    alone = surface(defence, "classifier")
    logits = alone.answer(images(), key_of(40))
    assert torch.equal(logits[:, :5], several()(images()))
    assert (logits.argmax(dim=1) != 5).all()
    assert (alone.passes, alone.same_outputs) == (1, False)


@pytest.mark.parametrize("criterion", ["targeted", "untargeted"])
def test_one_long_step_equals_many_short_ones_if_the_gradient_is_constant(criterion):
    """The stand-in is below zero exactly if the threshold's number of steps is enough."""
    part, points = line(60)
    part.weight.data *= 0.01  # so flat that the loss is linear
    part.bias.data *= 0.01
    slope = part.weight[0].square().sum().item()
    margins = (part(points)[:, 0] - part(points)[:, 1]).abs()
    rate = margins.median().item() / (0.5 * slope * 10)
    defence = detector(
        part, criteria=[criterion], lr_t=rate, lr_u=rate, radius=1.0, steps_t=60, steps_u=60
    )
    defence.thresholds.fill_(10)
    logits = surface(defence, "joint").answer(points, key_of(60))
    stand_in = logits[:, 2] - logits[:, :2].amax(dim=1)
    scores = defence.scores(points, key_of(60))[:, 0]
    clear = (scores - 10.5).abs() > 1
    assert torch.equal((stand_in > 0)[clear], (scores > 10)[clear])
    assert 10 < (stand_in > 0).sum() < 50


def test_the_joint_surface_counts_its_passes():
    counting = Counting(several())
    defence = detector(counting)
    surface(defence, "joint").answer(images(), key_of(40))
    assert counting.count == 40 * surface(defence, "joint").passes
    assert [one.name for one in defence.surfaces()] == ["classifier", "joint"]


def test_an_attack_on_the_joint_surface_passes_a_detector_that_rejects_the_oblivious_one():
    """With the stand-ins of the detector in the loss it rejects fewer wrong answers."""
    part = several()
    defence = fit(detector(part, criteria=["noise"], fpr=0.3))
    points = images(100, 5)
    labels = part(points).argmax(dim=1)
    key = key_of(100)
    passed = {}
    for name in ("classifier", "joint"):
        answer = surface(defence, name).answer
        moved = points
        for _ in range(40):
            moved = moved.detach().requires_grad_()
            logits = answer(moved, key)
            wrong = logits[:, :5].scatter(1, labels[:, None], -math.inf).amax(dim=1)
            caught = torch.maximum(logits.gather(1, labels[:, None])[:, 0], logits[:, 5])
            (gradient,) = torch.autograd.grad((wrong - caught).clamp(max=0.2).sum(), moved)
            step = moved + 0.004 * gradient.sign()
            moved = step.clamp(points - 0.1, points + 0.1).clamp(0, 1)
        prediction = defence.draw(moved.detach(), key).argmax(dim=1)
        passed[name] = int(((prediction != labels) & (prediction != 5)).sum())
    assert passed["joint"] > passed["classifier"] + 10


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"criteria": ["nois"]}, "unknown criterion 'nois': did you mean 'noise'"),
        (
            {"criteria": []},
            r"expected some of noise, targeted, untargeted as criteria, each once, got \[\]",
        ),
        ({"criteria": ["noise", "noise"]}, "each once"),
        ({"fpr": 2}, r"expected fpr as a number in \[0, 1\], got 2"),
        ({"lr_t": 0}, "expected lr_t as a number above 0, got 0"),
        ({"lr_u": float("inf")}, "expected lr_u as a number above 0, got inf"),
        ({"radius": -1}, "expected radius as a number above 0, got -1"),
        ({"steps_t": 0}, "expected steps_t as a whole number of at least 1, got 0"),
        ({"steps_u": 1.5}, "expected steps_u as a whole number of at least 1, got 1.5"),
        ({"sigma": "small"}, "got 'small'"),
    ],
)
def test_impossible_arguments_are_refused(arguments, expected):
    with pytest.raises(UsageError, match=expected):
        detector(**arguments)
