"""The search.

Means over several answers, gradients for the rows that want one, and what it counts.
"""

import numpy as np
import pytest
import torch
from oracles import linear
from torch import nn

from robustbench_kd.attacks.apgd import Apgd
from robustbench_kd.attacks.fab import Fab
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.engine.passes.search import Search
from robustbench_kd.tensors.attack import Rows, begin_at_random
from robustbench_kd.tensors.defence import Key
from robustbench_kd.tensors.meter import Meter

N = 6
IMAGES = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(100, 100 + N)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
WEIGHTS = torch.tensor([0.2, 0.5, 0.3])
KEY = Key(0, "search", IDS, torch.arange(N))
CE = Apgd(loss="ce")
EVERY, NONE = np.ones(N, dtype=bool), np.zeros(N, dtype=bool)
MOST, FEW = np.arange(N) < 4, np.arange(N) < 2


def plain(images, key):
    return linear(4, scale=0.1)(images)


def several(images, key):
    """Three answers to each image, which depend on its draw."""
    one = plain(images, key)
    noise = key.repeated(3).normal("noise", 4).view(3, -1, 4)
    return one * torch.tensor([0.1, 1.0, 3.0]).view(3, 1, 1) + noise


def state_of(attack):
    rows = Rows(IMAGES, LABELS, plain(IMAGES, KEY).detach(), IDS, torch.zeros_like(IDS))
    return begin_at_random(attack, rows, Threat.parse("linf:0.1"), 0)


def evaluate(search, wanted, attack=CE):
    return search.evaluate(IMAGES, KEY, wanted, state_of(attack))


def losses(answers):
    return torch.stack(
        [nn.functional.cross_entropy(logits, LABELS, reduction="none") for logits in answers]
    )


def gradient_of(mean):
    """The gradient of a mean loss of the answers, by hand."""
    points = IMAGES.clone().requires_grad_()
    return torch.autograd.grad(mean(losses(several(points, KEY))).sum(), points)[0]


@pytest.mark.parametrize("wanted", [EVERY, MOST, FEW, NONE])
def test_a_plain_model_is_told_as_it_is(wanted):
    reply = evaluate(Search(plain), wanted)
    logits = plain(IMAGES, KEY)
    torch.testing.assert_close(reply.logits, logits)
    torch.testing.assert_close(reply.values, losses([logits]))
    assert torch.equal(reply.answers, reply.logits[None])
    assert not reply.logits.requires_grad
    assert not reply.values.requires_grad


@pytest.mark.parametrize("wanted", [EVERY, NONE])
def test_the_answers_of_a_plain_model_are_no_copy(wanted):
    reply = evaluate(Search(plain), wanted)
    assert reply.answers.data_ptr() == reply.logits.data_ptr()


@pytest.mark.parametrize(
    ("weights", "mean"),
    [
        (None, lambda parts: parts.mean(dim=0)),
        (WEIGHTS, lambda parts: torch.tensordot(WEIGHTS, parts, dims=1)),
    ],
)
@pytest.mark.parametrize("wanted", [EVERY, MOST, FEW, NONE])
def test_several_answers_count_by_their_weights(wanted, weights, mean):
    """The mean of the losses is wanted, not the loss of the mean logits."""
    reply = evaluate(Search(several, weights=weights), wanted)
    answers = several(IMAGES, KEY)
    torch.testing.assert_close(reply.answers, answers)
    torch.testing.assert_close(reply.logits, mean(answers))
    torch.testing.assert_close(reply.values, mean(losses(answers))[None])
    if wanted.any():
        expected = gradient_of(mean) * torch.from_numpy(wanted).view(-1, 1, 1, 1)
        torch.testing.assert_close(reply.gradient, expected[None])
    else:
        assert reply.gradient is None


@pytest.mark.parametrize("wanted", [EVERY, MOST, FEW])
def test_every_value_of_an_attack_has_its_own_gradient(wanted):
    reply = evaluate(Search(several), wanted, Fab(targeted=False))
    assert reply.values.shape == (4, N)
    points = IMAGES.clone().requires_grad_()
    mean = several(points, KEY).mean(dim=0)
    for j, gradient in enumerate(reply.gradient):
        gap = mean[:, j] - mean.gather(1, LABELS[:, None]).squeeze(1)
        (expected,) = torch.autograd.grad(gap.sum(), points, retain_graph=True)
        torch.testing.assert_close(
            gradient, expected * torch.from_numpy(wanted).view(-1, 1, 1, 1), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    ("wanted", "backwards"),
    [(EVERY, N), (MOST, N), (FEW, 2), (NONE, 0)],
    ids=["every", "most", "few", "none"],
)
@pytest.mark.parametrize("passes", [1, 5])
def test_it_counts_the_passes_that_a_network_makes(wanted, backwards, passes):
    seen = []
    meter = Meter(seen.append)
    meter.add(forwards=10, backwards=20)
    evaluate(Search(plain, passes=passes, meter=meter), wanted)
    assert (meter.forwards, meter.backwards) == (10 + passes * N, 20 + passes * backwards)
    assert seen[-1] == meter.passes
    assert meter.model_seconds > 0


def test_a_backward_pass_counts_for_every_value():
    search = Search(plain)
    evaluate(search, EVERY, Fab(targeted=False))
    assert (search.meter.forwards, search.meter.backwards) == (N, 4 * N)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [EVERY, FEW, NONE])
def test_answers_of_half_precision_are_widened(wanted, dtype):
    reply = evaluate(Search(lambda images, key: plain(images, key).to(dtype)), wanted)
    assert reply.logits.dtype == reply.values.dtype == reply.answers.dtype == torch.float32


def test_a_key_of_some_rows_draws_what_those_rows_draw():
    rows = torch.tensor([4, 1])
    assert torch.equal(KEY.take(rows).uniform("part", 3), KEY.uniform("part", 3)[rows])


@pytest.mark.parametrize("norm", list(Norm))
def test_a_check_beside_gradients_moves_a_point_by_nothing_but_its_own_pull(norm):
    """FAB believes that rows which wanted no gradient find zeros."""
    attack = Fab(targeted=True)
    rows = Rows(
        IMAGES,
        plain(IMAGES, KEY).argmax(dim=1),
        plain(IMAGES, KEY).detach(),
        IDS,
        torch.zeros_like(IDS),
    )
    state = begin_at_random(attack, rows, Threat.parse(f"{norm.value}:0.1"), 0)
    state.checking[4:] = True
    reply = Search(plain).evaluate(IMAGES, KEY, MOST, state)
    after = state.tell(reply.logits, reply.values, reply.gradient)
    assert torch.equal(after.points[4:], IMAGES[4:])
    assert (after.points[:4] != IMAGES[:4]).flatten(1).any(dim=1).all()
