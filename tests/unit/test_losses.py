"""Losses, against their published formulas written out in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.tensors.losses import cross_entropy, dlr, kl_divergence, margin, targeted_dlr

EXAMPLES = settings(max_examples=40, deadline=None)


@st.composite
def logits_and_labels(draw, least=4):
    n = draw(st.integers(1, 4))
    k = draw(st.integers(least, 8))
    rows = st.lists(st.floats(-20, 20, width=32), min_size=k, max_size=k, unique=True)
    logits = torch.tensor([draw(rows) for _ in range(n)], dtype=torch.float64)
    return logits, torch.tensor([draw(st.integers(0, k - 1)) for _ in range(n)])


def by_row(logits, labels):
    return [(z.tolist(), int(y)) for z, y in zip(logits, labels, strict=True)]


def best_other(z, y):
    return max(value for index, value in enumerate(z) if index != y)


@EXAMPLES
@given(logits_and_labels())
def test_cross_entropy_is_minus_the_log_probability(case):
    expected = []
    for z, y in by_row(*case):
        total = sum(math.exp(value) for value in z)
        expected.append(math.log(total) - z[y])
    assert cross_entropy(*case).tolist() == pytest.approx(expected, abs=1e-9)


@EXAMPLES
@given(logits_and_labels())
def test_the_margin_is_the_lead_over_the_best_other_class(case):
    assert margin(*case).tolist() == [z[y] - best_other(z, y) for z, y in by_row(*case)]


@EXAMPLES
@given(logits_and_labels())
def test_the_margin_is_positive_exactly_where_the_label_is_predicted(case):
    logits, labels = case
    assert torch.equal(margin(logits, labels) > 0, logits.argmax(1) == labels)


@EXAMPLES
@given(logits_and_labels(least=3))
def test_dlr_is_the_published_ratio(case):
    expected = []
    for z, y in by_row(*case):
        ranked = sorted(z, reverse=True)
        expected.append(-(z[y] - best_other(z, y)) / (ranked[0] - ranked[2] + 1e-12))
    assert dlr(*case).tolist() == pytest.approx(expected)


@EXAMPLES
@given(logits_and_labels(), st.randoms(use_true_random=False))
def test_targeted_dlr_is_the_published_ratio(case, random):
    logits, labels = case
    targets = torch.tensor([random.randrange(logits.shape[1]) for _ in labels])
    expected = []
    for (z, y), t in zip(by_row(logits, labels), targets.tolist(), strict=True):
        ranked = sorted(z, reverse=True)
        expected.append(-(z[y] - z[t]) / (ranked[0] - (ranked[2] + ranked[3]) / 2 + 1e-12))
    assert targeted_dlr(logits, labels, targets).tolist() == pytest.approx(expected)


@EXAMPLES
@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(0.01, 100))
def test_dlr_ignores_shift_and_scale(seed, shift, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    targets = torch.tensor([3, 3, 3])
    changed = scale * (logits + shift)
    torch.testing.assert_close(dlr(changed, labels), dlr(logits, labels), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        targeted_dlr(changed, labels, targets),
        targeted_dlr(logits, labels, targets),
        rtol=1e-6,
        atol=1e-6,
    )


def test_the_tiny_term_keeps_equal_logits_finite():
    flat = torch.ones(1, 5)
    label = torch.tensor([2])
    assert dlr(flat, label).tolist() == [0]
    assert targeted_dlr(flat, label, torch.tensor([1])).tolist() == [0]


@EXAMPLES
@given(logits_and_labels(), logits_and_labels())
def test_the_divergence_is_never_negative_and_zero_from_itself(case, other):
    logits, _ = case
    assert kl_divergence(logits, logits).tolist() == [0] * len(logits)
    target, _ = other
    n = min(len(logits), len(target))
    k = min(logits.shape[1], target.shape[1])
    assert (kl_divergence(logits[:n, :k], target[:n, :k]) >= -1e-12).all()


@EXAMPLES
@given(st.integers(0, 1000))
def test_the_mean_divergence_is_the_batchmean_of_torch(seed):
    generator = torch.Generator().manual_seed(seed)
    target, logits = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    expected = functional.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")
    torch.testing.assert_close(kl_divergence(target, logits).mean(), expected)


@pytest.mark.parametrize(
    ("call", "needed"),
    [
        (lambda k: margin(torch.ones(1, k), torch.tensor([0])), 2),
        (lambda k: dlr(torch.ones(1, k), torch.tensor([0])), 3),
        (lambda k: targeted_dlr(torch.ones(1, k), torch.tensor([0]), torch.tensor([0])), 4),
    ],
)
def test_a_loss_refuses_too_few_classes(call, needed):
    assert call(needed).shape == (1,)
    with pytest.raises(UsageError, match=f"at least {needed} classes .* got {needed - 1}"):
        call(needed - 1)


@EXAMPLES
@given(logits_and_labels())
def test_every_loss_has_one_value_and_a_finite_gradient_per_example(case):
    logits, labels = case
    logits = logits.requires_grad_()
    losses = [cross_entropy(logits, labels), margin(logits, labels), dlr(logits, labels)]
    for loss in losses:
        assert loss.shape == labels.shape
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient.isfinite().all()
