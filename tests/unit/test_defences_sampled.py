"""Random transformations and noisy denoisers: their draws, their outputs and their gradients."""

from dataclasses import replace

import pytest
import torch
from oracles import Linear
from torch import nn
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.defences import denoiser, smoothed
from robustbench_kd.tensors.defence import Key, Randomized

SHAPE = (1, 8, 8)


def network():
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    return Linear(weight, torch.zeros(3)).requires_grad_(False)


def images(n=5, seed=0):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def key_of(n, draw=0):
    return Key(0, "test", ids=torch.arange(n), draw=torch.full((n,), draw))


def noise(key):
    return key.normal("noise", 64).view(-1, *SHAPE)


def surface(defence, name):
    return next(one for one in defence.surfaces() if one.name == name)


def noisy(sigma=0.2):
    return smoothed.assemble([network()], sigma=sigma)


def resizer(part=None, **arguments):
    return smoothed.assemble([part or nn.Identity()], transform="resize-pad", **arguments)


def denoising(**arguments):
    return denoiser.assemble([network()], shape=SHAPE, width=4, sigma=0.3, **arguments)


def test_noise_has_the_size_asked_for_and_is_not_clipped():
    key = key_of(5)
    torch.testing.assert_close(noisy().draw(images(), key), network()(images() + 0.2 * noise(key)))


@pytest.mark.parametrize("make", [noisy, resizer, denoising])
def test_a_shared_draw_is_the_same_at_every_step(make):
    defence = make()
    shared = surface(defence, "shared-noise").answer
    first = shared(images(), key_of(5, draw=1))
    assert torch.equal(shared(images(), key_of(5, draw=2)), first)
    assert torch.equal(defence.draw(images(), key_of(5)), first)
    assert not torch.equal(defence.draw(images(), key_of(5, draw=1)), first)


@pytest.mark.parametrize("make", [noisy, resizer, denoising])
def test_expected_stacks_ten_fresh_draws(make):
    defence = make()
    key = key_of(5, draw=3)
    expected = surface(defence, "expected")
    answers = expected.answer(images(), key)
    assert (len(answers), expected.passes, expected.same_outputs) == (10, 10, True)
    for index in range(10):
        drawn = defence.draw(images(), replace(key, draw=key.draw * 10 + index))
        torch.testing.assert_close(answers[index], drawn)
    assert not torch.allclose(expected.answer(images(), key_of(5, draw=4)), answers)


def test_resizing_to_one_size_is_what_torch_does():
    once = resizer(low=2.0, high=2.0).draw(images(), key_of(5))
    expected = functional.interpolate(
        images(), scale_factor=2, mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(once, expected)
    once = resizer(low=1.0, high=1.0).draw(images(), key_of(5))
    torch.testing.assert_close(once, images())


def test_a_smaller_image_lies_at_a_random_place_on_black():
    n = 400
    drawn = resizer(low=0.5, high=1.0).draw(torch.ones(n, *SHAPE), key_of(n))[:, 0]
    assert drawn.shape == (n, 8, 8)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    sides = drawn.amax(dim=1).sum(dim=1)
    torch.testing.assert_close(drawn.sum(dim=(1, 2)), sides.square())
    counts = sides.long().bincount(minlength=9)
    assert counts[:4].sum() == 0
    assert (counts[4:] - n / 5).abs().max() < 4 * (n * 0.16) ** 0.5
    tops = drawn.amax(dim=2).argmax(dim=1)[sides == 4]
    lefts = drawn.amax(dim=1).argmax(dim=1)[sides == 4]
    assert set(tops.tolist()) == set(lefts.tolist()) == set(range(5))
    assert not torch.equal(tops, lefts)


def test_an_image_may_grow_and_need_not_be_square():
    drawn = resizer(low=1.0, high=1.5).draw(torch.ones(30, 1, 4, 6), key_of(30))
    assert drawn.shape == (30, 1, 6, 9)
    heights = (drawn[:, 0].amax(dim=2) > 0).sum(dim=1)
    widths = (drawn[:, 0].amax(dim=1) > 0).sum(dim=1)
    assert set(heights.tolist()) == {4, 5, 6}
    assert set(widths.tolist()) == {6, 7, 8, 9}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"transform": "noises"}, "unknown transformation 'noises': did you mean 'noise'"),
        ({"sigma": -1}, r"expected sigma as a number in \[0, 10\], got -1"),
        ({"low": 0}, "expected low as a number above 0, got 0"),
        ({"low": 0.9, "high": 0.8}, r"expected high as a number in \[0.9, 4\], got 0.8"),
        ({"high": "1"}, "got '1'"),
    ],
)
def test_impossible_transformations_are_refused(arguments, expected):
    with pytest.raises(UsageError, match=expected):
        smoothed.assemble([network()], **arguments)


def test_the_denoised_image_is_clipped_and_classified():
    defence = denoising()
    key = key_of(5)
    with torch.no_grad():
        nn.init.normal_(defence.denoiser.decoder[-1].weight, std=10)
        raw = defence.reconstruct(images() + 0.3 * noise(key))
        assert raw.min() < 0
        assert raw.max() > 1
        torch.testing.assert_close(defence.draw(images(), key), network()(raw.clamp(0, 1)))


def test_straight_through_has_the_gradient_of_the_classifier_at_the_denoised_image():
    straight = surface(denoising(known=True), "straight-through")
    points = images().requires_grad_()
    (gradient,) = torch.autograd.grad(straight.answer(points, key_of(5))[:, 0].sum(), points)
    torch.testing.assert_close(gradient, network().weight[0].view(1, *SHAPE).expand(5, -1, -1, -1))
    assert straight.same_outputs


def test_ten_draws_may_leave_out_the_gradient_of_the_denoiser():
    defence = denoising()
    key = key_of(5)
    straight = surface(defence, "expected-straight-through").answer
    points = images().requires_grad_()
    answers = straight(points, key)
    assert torch.equal(answers, surface(defence, "expected").answer(images(), key))
    (gradient,) = torch.autograd.grad(answers[3, :, 0].sum(), points)
    torch.testing.assert_close(gradient, network().weight[0].view(1, *SHAPE).expand(5, -1, -1, -1))


def test_known_noise_is_the_same_for_all_images_calls_and_processes():
    defence = denoising(known=True)
    assert not isinstance(defence, Randomized)
    copies = images(1).repeat(3, 1, 1, 1)
    assert torch.equal(defence(copies), defence(copies))
    torch.testing.assert_close(defence(copies), defence(images(1)).expand(3, -1))
    zero = torch.zeros(1, dtype=torch.int64)
    constant = Key(0, "denoiser", ids=zero, draw=zero).normal("noise", 64).view(1, *SHAPE)
    with torch.no_grad():
        clean = defence.reconstruct(images() + 0.3 * constant).clamp(0, 1)
        torch.testing.assert_close(defence(images()), network()(clean))


def test_known_and_fresh_noise_share_their_weights():
    fresh = denoising()
    known = denoising(known=True)
    known.load_state_dict(fresh.state_dict())


def test_a_denoiser_declares_these_surfaces():
    assert [one.name for one in denoising().surfaces()] == [
        "backbone",
        "shared-noise",
        "expected",
        "expected-straight-through",
    ]
    assert [one.name for one in denoising(known=True).surfaces()] == [
        "backbone",
        "straight-through",
    ]


def test_a_denoiser_learns_to_remove_noise():
    defence = denoising()
    start = next(defence.denoiser.parameters()).clone()
    optimiser = torch.optim.Adam(defence.denoiser.parameters(), lr=0.02)
    ramp = torch.linspace(0, 1, 8).expand(16, 1, 8, 8)
    clean = ramp * torch.linspace(0.2, 1, 16).view(16, 1, 1, 1)
    losses = []
    for draw in range(40):
        added = 0.3 * noise(key_of(16, draw))
        loss = functional.mse_loss(defence.reconstruct(clean + added), clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert not torch.equal(next(defence.denoiser.parameters()), start)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"width": 0}, "expected width as a whole number of at least 1, got 0"),
        ({"sigma": 11}, r"expected sigma as a number in \[0, 10\], got 11"),
        ({"known": 1}, "expected known as true or false, got 1"),
    ],
)
def test_impossible_denoisers_are_refused(arguments, expected):
    with pytest.raises(UsageError, match=expected):
        denoiser.assemble([network()], shape=SHAPE, **arguments)
