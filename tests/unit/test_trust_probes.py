"""Checks that probe a defence: none raises a finding on sound models, each on broken ones."""

from dataclasses import replace

import pytest
import torch
from broken import (
    BROKEN,
    BatchStatistics,
    Detached,
    Through,
    Undeclared,
    declared_ensemble,
    digits,
    masked_ensemble,
)
from oracles import Linear, constant, conv, images_for, linear, nearest_mean
from torch import nn

from robustbench_kd.core.records import Severity
from robustbench_kd.core.threat import Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.probing.checkup import Scope, offered, probe_of
from robustbench_kd.tensors.oracle import Oracle
from robustbench_kd.tensors.probe import NoGradientError
from robustbench_kd.trust import (
    batch_dependence,
    clamped_pixels,
    gradient_coherence,
    gradient_mismatch,
    loss_gain,
    normalisation,
    optimisation_in_forward,
    probabilities,
    quantised_input,
    randomness,
    saturated_loss,
    training_mode,
    unstable_loss,
    zero_gradients,
)

SHAPE = (1, 8, 8)
INFO, YELLOW, RED = Severity.INFO, Severity.YELLOW, Severity.RED


def sample(model, data=None, threat="linf:0.05", **scope):
    data = data or images_for(model, n=12, shape=SHAPE)
    oracle = Oracle(model, torch.device("cpu"))
    return probe_of(oracle, data, Threat.parse(threat), Scope(**scope))


def of_digits(model, n=24, **options):
    """A probe of the test digits that the model classifies correctly."""
    data = open_dataset("digits", split="test", limit=n)
    return sample(model, data, threat="linf:0.15", **options)


def changed(change):
    return Through(linear(), after=change).eval()


def all_findings(probe):
    found = []
    for check in offered("probe"):
        found += check(probe)
    return found


@pytest.mark.parametrize("threat", ["linf:0.05", "l2:0.5", "l1:3"])
@pytest.mark.parametrize(
    "make", [linear, nearest_mean, lambda: conv(channels=1), lambda: linear(classes=2)]
)
def test_a_sound_model_has_no_finding(make, threat):
    model = make()
    assert all_findings(sample(model, images_for(model, n=12, shape=SHAPE), threat)) == []


@pytest.mark.parametrize("threat", ["linf:0.1", "linf:0.2", "l2:1"])
@pytest.mark.parametrize("name", ["plain", "teacher", "small"])
def test_shipped_checkpoints_have_no_finding(name, threat):
    data = open_dataset("digits", split="test", limit=24)
    assert all_findings(sample(digits(name), data, threat)) == []


def test_a_declared_ensemble_is_probed_under_one_draw_and_has_no_finding():
    assert all_findings(of_digits(declared_ensemble())) == []


def broken_models():
    for make, meant in BROKEN.items():
        if meant != "normalisation":
            marks = pytest.mark.slow if make is masked_ensemble else ()
            yield pytest.param(make, marks=marks)


@pytest.mark.parametrize("make", list(broken_models()))
def test_a_broken_model_raises_the_finding_meant_for_it(make):
    found = []
    probe = of_digits(make())
    for check in offered("probe"):
        try:
            found += check(probe)
        except NoGradientError:
            continue
    assert BROKEN[make] in {finding.check for finding in found}


# Randomness


def test_the_same_answer_twice_is_no_randomness():
    assert randomness.probe(sample(linear())) == []


def test_noise_is_red_and_measured_on_normalised_logits():
    noisy = Through(linear(), lambda images: images + 0.1 * torch.rand_like(images)).eval()
    (found,) = randomness.probe(sample(noisy))
    assert (found.severity, found.threshold) == (RED, 1e-4)
    assert found.value > 1e-2
    assert found.examples == sorted(found.examples)


def test_noise_below_the_limit_is_no_randomness():
    tiny = changed(lambda logits: logits * (1 + 1e-7 * torch.rand_like(logits)))
    assert [found.severity for found in randomness.probe(sample(tiny))] == [YELLOW]


def test_a_flipping_prediction_is_randomness_however_small_the_change():
    """Two classes are equal except for a random tie break."""

    def coin(logits):
        tied = torch.zeros_like(logits)
        tied[:, :2] = 1 + 1e-6 * torch.rand(len(logits), 2)
        return tied

    model = changed(coin)
    data = images_for(model, n=40, shape=SHAPE)
    probe = sample(model, data)
    (found,) = randomness.probe(probe)
    assert found.severity is RED
    assert found.value < 1e-4


def test_a_hidden_seed_is_yellow():
    def reseeded(images):
        torch.manual_seed(3)
        return images + 0.01 * torch.rand_like(images)

    (found,) = randomness.probe(sample(Through(linear(), reseeded).eval()))
    assert found.severity is YELLOW


def test_a_member_drawn_for_the_whole_batch_is_randomness():
    members = [digits("plain"), digits("plain"), digits("small")]
    for seed in range(4):
        torch.manual_seed(seed)
        (found,) = randomness.probe(of_digits(Undeclared(members).eval()))
        assert found.severity is RED


def test_the_search_for_a_hidden_seed_does_not_change_the_random_state():
    before = torch.random.get_rng_state()
    randomness.probe(sample(linear()))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_declared_defence_that_ignores_its_key_is_red():
    class Liar(nn.Module):
        def draw(self, images, key):
            return linear()(images + 0.1 * torch.rand_like(images))

    data = images_for(linear(), n=12, shape=SHAPE)
    (found,) = randomness.probe(sample(Liar().eval(), data))
    assert found.severity is RED
    assert "key" in found.advice


# Other images of the batch


def test_running_statistics_do_not_depend_on_the_batch():
    model = nn.Sequential(nn.BatchNorm2d(1), linear()).eval()
    assert batch_dependence.probe(sample(model)) == []


@pytest.mark.parametrize(
    "model", [BatchStatistics(linear()), Through(linear(), lambda x: x - x.mean(dim=0))]
)
def test_statistics_of_the_batch_are_red(model):
    (found,) = batch_dependence.probe(sample(model.eval()))
    assert found.severity is RED


def test_randomness_is_no_batch_dependence():
    model = Undeclared([digits("plain"), digits("small")]).eval()
    assert batch_dependence.probe(of_digits(model)) == []


# Mode


def test_only_a_model_in_training_mode_is_reported():
    assert training_mode.probe(sample(linear())) == []
    (found,) = training_mode.probe(sample(nn.Sequential(linear(), nn.Dropout(0.5)).train()))
    assert found.severity is INFO


# Gradients within the forward pass


def by_grad(images):
    points = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(linear()(points).square().sum(), points)
    return images - 0.01 * slope.sign()


def by_backward(images):
    points = images.detach().clone().requires_grad_()
    linear()(points).logsumexp(dim=1).sum().backward()
    return images - 0.01 * points.grad.sign()


def by_transform(images):
    slope = torch.func.grad(lambda points: linear()(points).square().sum())
    return images - 0.01 * slope(images).sign()


@pytest.mark.parametrize(
    "inner", [by_grad, by_backward, pytest.param(by_transform, marks=pytest.mark.slow)]
)
def test_gradients_within_the_forward_pass_are_noticed_however_they_are_computed(inner):
    model = Through(linear(), torch.enable_grad()(inner)).eval()
    (found,) = optimisation_in_forward.probe(sample(model))
    assert found.severity is YELLOW


def test_recording_gradients_without_using_them_is_no_optimisation():
    doubled = torch.enable_grad()(lambda images: images.clone().requires_grad_() * 2)
    model = Through(linear(), doubled).eval()
    assert optimisation_in_forward.probe(sample(model)) == []


# Outputs


def test_logits_and_log_probabilities_are_no_probabilities():
    (found,) = probabilities.probe(sample(changed(lambda logits: logits.softmax(dim=1))))
    assert found.severity is YELLOW
    for change in (lambda logits: logits.log_softmax(dim=1), lambda logits: logits.sigmoid()):
        assert probabilities.probe(sample(changed(change))) == []


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(1e4, "gradient of exactly zero"), (1, ""), (1e-3, ""), (1e-7, "losses are nearly equal")],
)
def test_scaled_logits_saturate_or_flatten_the_cross_entropy(scale, expected):
    model = Linear(scale * linear().weight, scale * linear().bias).eval()
    found = saturated_loss.probe(sample(model))
    assert [expected in finding.message for finding in found] == ([True] if expected else [])
    assert all(finding.severity is YELLOW for finding in found)


def test_confidence_of_exactly_one_alone_is_no_saturation():
    """The label has probability 1 in float32, but the other classes have more than 0."""
    probe = sample(Linear(linear().weight * 12, linear().bias * 12).eval())
    assert (probe.logits.softmax(dim=1).amax(dim=1) == 1).float().mean() > 0.1
    assert saturated_loss.probe(probe) == []


# Gradients


def half_dead(logits):
    """The same logits, without a gradient where the first logit is positive."""
    return torch.where(logits[:, :1] > 0, logits.detach(), logits)


def test_zero_gradients_are_counted():
    probe = sample(changed(half_dead))
    dead = int((probe.logits[:, 0] > 0).sum())
    (found,) = zero_gradients.probe(probe)
    assert 0 < dead < 12
    assert found.severity is RED
    assert found.value == dead / 12
    assert f"{dead} exactly zero, 0 not finite" in found.message


def test_one_zero_gradient_among_many_is_yellow():
    data = images_for(linear(), n=30, shape=SHAPE)
    first = data.images[:1]

    def dead(images):
        far = (images - first).abs().flatten(1).amax(dim=1)
        return torch.where(far[:, None, None, None] < 1e-6, images.detach(), images)

    (found,) = zero_gradients.probe(sample(Through(linear(), dead).eval(), data))
    assert found.severity is YELLOW
    assert found.examples == [100]


def test_gradients_that_are_not_finite_are_counted():
    model = Through(linear(), lambda images: (images * 0).sqrt() + images).eval()
    (found,) = zero_gradients.probe(sample(model))
    assert found.severity is RED
    assert "0 exactly zero, 12 not finite" in found.message


def raises_under_autograd(images):
    if images.requires_grad:
        raise ValueError("inference only")
    return images


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (changed(torch.Tensor.detach), "does not require grad"),
        (Through(linear(), raises_under_autograd), "inference only"),
        (
            changed(lambda logits: torch.from_numpy(logits.detach().numpy())),
            "does not require grad",
        ),
    ],
)
def test_a_missing_gradient_is_a_finding_and_no_crash(model, message):
    (found,) = zero_gradients.probe(sample(model.eval()))
    assert found.severity is RED
    assert message in found.message


def test_a_constant_model_has_zero_gradients():
    (found,) = zero_gradients.probe(sample(constant()))
    assert "12 exactly zero" in found.message


def test_a_detached_half_is_a_mismatch():
    other = Linear(linear().weight.flip(1), linear().bias.flip(0))
    (found,) = gradient_mismatch.probe(sample(Detached(linear(), other).eval()))
    assert found.severity is RED
    assert gradient_mismatch.probe(sample(linear())) == []


def lying(images):
    """The identity, with the gradient of a rotation by half a circle."""
    turned = images.flip(2, 3)
    return images.detach() + turned - turned.detach()


def test_a_wrong_gradient_is_red():
    (found,) = gradient_mismatch.probe(sample(Through(linear(), lying).eval()))
    assert found.severity is RED


def test_rounding_with_a_straight_gradient_agrees_in_large_steps():
    """Rounding in small steps is not a wrong gradient."""
    model = Through(linear(), lambda x: x + ((x * 64).round() / 64 - x).detach()).eval()
    found = gradient_mismatch.probe(sample(model, threat="linf:0.05"))
    assert all(finding.severity is YELLOW for finding in found)


def test_ripples_as_wide_as_a_tenth_of_the_radius_are_rough():
    """The gradient is correct in small steps and useless in larger ones."""
    model = Through(linear(), lambda images: images + 0.03 * torch.sin(300 * images)).eval()
    (found,) = gradient_mismatch.probe(sample(model, threat="linf:0.2"))
    assert found.severity is YELLOW
    assert "rough" in found.message


def rippled(images):
    """The slope is -9 on a grid where the images lie, and 1 over any distance."""
    return images - 10 * torch.sin(images * 1e5) / 1e5


def test_the_gain_of_a_linear_model_is_what_its_gradient_predicts():
    gains = loss_gain.gains(sample(linear(), threat="linf:0.01"))
    torch.testing.assert_close(gains[0].median(), torch.tensor(1.0), rtol=0.05, atol=0)


def test_a_gradient_that_holds_only_at_the_point_is_red():
    """All pixels lie on the grid of the ripples."""
    data = images_for(linear(), n=12, shape=SHAPE)
    period = 2 * torch.pi / 1e5
    images = (data.images / period).round() * period
    model = Through(linear(), rippled).eval()
    (found,) = loss_gain.probe(sample(model, replace(data, images=images)))
    assert found.severity is RED
    assert abs(found.value) < 0.15


def test_gradients_of_white_noise_do_not_cohere():
    rough = Through(linear(), lambda images: images + 3e-3 * torch.sin(images * 1e4)).eval()
    (found,) = gradient_coherence.probe(sample(rough))
    assert found.severity is YELLOW
    assert found.value < 0.3
    torch.testing.assert_close(gradient_coherence.cosines(sample(linear(2))), torch.ones(12))


def test_the_loss_of_a_linear_model_is_stable_and_a_rough_one_is_not():
    assert unstable_loss.probe(sample(linear())) == []
    rough = Through(linear(), lambda images: images + 0.1 * torch.sin(images * 1e5)).eval()
    (found,) = unstable_loss.probe(sample(rough))
    assert found.severity is YELLOW
    assert "IoAF I2" in found.message


@pytest.mark.parametrize("levels", [4, 16, 255])
def test_rounded_input_is_noticed_on_and_off_the_grid(levels):
    model = Through(linear(), lambda images: (images * levels).round() / levels).eval()
    data = images_for(model, n=12, shape=SHAPE)
    grid = (data.images * 255).round() / 255
    for images in (data.images, grid):
        labels = model(images).argmax(dim=1)
        (found,) = quantised_input.probe(sample(model, replace(data, images=images, labels=labels)))
        assert found.severity is YELLOW


def test_half_precision_counts_as_rounding_and_single_does_not():
    model = Through(linear().double(), lambda x: x.half().double()).eval()
    (found,) = quantised_input.probe(sample(model))
    assert found.check == "quantised-input"
    assert quantised_input.probe(sample(linear())) == []


# Pixels at the borders of the box


def corner_images(model):
    """Images half of whose pixels are black or white."""
    data = images_for(model, n=12, shape=SHAPE)
    images = torch.where(torch.rand(data.images.shape) < 0.5, data.images.round(), data.images)
    return replace(data, images=images, labels=model(images).argmax(dim=1))


def test_a_clamp_that_ends_the_gradient_of_black_and_white_pixels_is_noticed():
    def masked_at_bounds(images):  # as the clamp of newer versions of torch
        inner = (images > 0) & (images < 1)
        return torch.where(inner, images, images.detach())

    data = corner_images(linear())
    (found,) = clamped_pixels.probe(sample(Through(linear(), masked_at_bounds).eval(), data))
    assert found.severity is RED
    assert "exactly 0 or 1" in found.message
    assert clamped_pixels.probe(sample(linear(), data)) == []


def test_images_without_black_or_white_cost_no_pass():
    data = images_for(linear(), n=12, shape=SHAPE)
    probe = sample(linear(), replace(data, images=data.images.clamp(0.2, 0.8)), threat="linf:0.1")
    assert clamped_pixels.probe(replace(probe, answer=None)) == []


# Normalisation


def correct(**counts):
    """Which of 100 images are correct under each normalisation: the first ones of a count."""
    return {name: torch.arange(100) < count for name, count in counts.items()}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"none": 60, "cifar10": 90}, RED),
        ({"none": 84, "cifar10": 90}, YELLOW),
        ({"none": 89, "cifar10": 90}, None),
        ({"none": 90, "cifar10": 60}, None),
        ({"none": 90, "cifar10": 90}, None),
        ({}, None),
    ],
)
def test_a_better_normalisation_is_named(counts, expected):
    found = normalisation.probe(sample(linear(), correct=correct(**counts), normalisation="none"))
    assert [finding.severity for finding in found] == ([expected] if expected else [])
    assert all("'cifar10'" in finding.message for finding in found)


def test_a_difference_that_is_not_significant_is_no_finding():
    """Ten images gained and seven lost."""
    used = torch.arange(100) >= 7
    other = torch.arange(100) < 100
    other[20:27] = False
    used[40:50] = False
    right = {"none": used & other | used, "cifar10": other & (torch.arange(100) >= 7)}
    assert normalisation.probe(sample(linear(), correct=right, normalisation="none")) == []
