"""The contract of every family of defences; a new file is found by its name and tested too."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.core.plugins import components, module
from robustbench_kd.core.threat import Norm
from robustbench_kd.tensors.defence import (
    Abstaining,
    Armed,
    Fitted,
    Key,
    Mixture,
    Randomized,
    Surfaced,
)
from robustbench_kd.tensors.geometry import inside

FAMILIES = components("defences")  # reads the files anew at every call
CLASSES, SHAPE = 4, (2, 8, 8)
SMALL = {"frontend": {"depth": 5, "width": 4}, "detector": {"steps_t": 4, "steps_u": 4}}
VARIANTS = [
    ("frontend", {"depth": 4, "width": 3, "amplitude": 0.05}),
    ("frontend", {"kind": "unet", "depth": 8, "width": 3, "amplitude": 0.05}),
    ("ensemble", {"mode": "logits", "weights": [0.3, 0.7]}),
    ("ensemble", {"mode": "probabilities"}),
    ("cache", {"layers": ["0", "3"], "items": 20, "flips": True}),
    ("denoiser", {"known": True, "width": 4}),
    ("detector", {"criteria": ["untargeted"], "steps_u": 3}),
    ("smoothed", {"transform": "resize-pad"}),
]
CASES = [(family, SMALL.get(family, {})) for family in FAMILIES] + VARIANTS


def part(seed=0):
    """A small classifier for images of every size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [
            nn.Conv2d(2, 6, 3, 1, 1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, 2, 1),
            nn.ReLU(),
        ]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES))


def build(family):
    return module("defences", FAMILIES[family].stem).assemble


def from_data(family):
    """The facts of the data set that a family takes."""
    parameters = inspect.signature(build(family)).parameters
    facts = {"classes": CLASSES, "shape": SHAPE}
    return {name: value for name, value in facts.items() if name in parameters}


def assemble(family, arguments, parts=None):
    """Assembles a family from one part, or from two if it needs more."""
    many = parts or [part(0), part(1)]
    try:
        return build(family)(many[:1], **from_data(family), **arguments)
    except UsageError:
        return build(family)(many, **from_data(family), **arguments)


def over(keeps):
    """Runs a test over the defences that meet a condition."""
    cases = [case for case in CASES if keeps(assemble(*case))]
    return pytest.mark.parametrize(("family", "arguments"), cases, ids=str)


every_defence = over(lambda _: True)
every_fitted_one = over(lambda defence: isinstance(defence, Fitted))
every_one_around_parts = over(lambda defence: hasattr(defence, "parts"))
every_deterministic_one = over(lambda defence: not isinstance(defence, Randomized))
every_randomized_one = over(lambda defence: isinstance(defence, Randomized))


def random_images(n=12, seed=0, shape=SHAPE):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def fitted(family, arguments, shape=SHAPE):
    """A fitted defence in evaluation mode.

    The classes of the data are in disorder, and one has no examples.
    """
    defence = assemble(family, arguments).eval()
    if isinstance(defence, Fitted):
        labels = torch.arange(40) % (CLASSES - 1)
        defence.fit(random_images(40, 1, shape), labels, random_images(30, 2, shape), labels[:30])
    return defence


def key_of(n, *, seed=0, draw=0):
    return Key(seed, "test", ids=torch.arange(100, 100 + n), draw=torch.full((n,), draw))


def answer(defence, images, key=None):
    if isinstance(defence, Randomized):
        return defence.draw(images, key or key_of(len(images)))
    return defence(images)


def own(state):
    return {name: value.clone() for name, value in state.items() if not name.startswith("parts.")}


def within_parts(state):
    return {name: value.clone() for name, value in state.items() if name.startswith("parts.")}


def surfaces_of(defence):
    return list(defence.surfaces()) if isinstance(defence, Surfaced) else []


@every_defence
def test_there_is_one_finite_row_of_logits_for_each_image(family, arguments):
    defence = fitted(family, arguments)
    logits = answer(defence, random_images())
    assert logits.shape == (12, CLASSES + isinstance(defence, Abstaining))
    assert logits.isfinite().all()


@every_defence
@pytest.mark.parametrize("shape", [(2, 7, 9), (2, 12, 5)])
def test_images_may_have_any_size(family, arguments, shape):
    defence = fitted(family, arguments, shape)
    assert answer(defence, random_images(5, shape=shape)).isfinite().all()
    assert answer(defence, random_images(1, shape=shape)).isfinite().all()


@every_defence
def test_an_answer_changes_no_image_and_draws_no_global_random_number(family, arguments):
    defence = fitted(family, arguments)
    images = random_images()
    before = images.clone()
    state = torch.get_rng_state()
    answer(defence, images)
    for surface in surfaces_of(defence):
        surface.answer(images, key_of(12))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@every_fitted_one
def test_fitting_draws_no_global_random_number(family, arguments):
    defence = assemble(family, arguments)
    state = torch.get_rng_state()
    labels = torch.arange(40) % CLASSES
    defence.fit(random_images(40), labels, random_images(40, 1), labels)
    assert torch.equal(torch.get_rng_state(), state)


@every_defence
def test_weights_come_from_the_seed_of_the_caller(family, arguments):
    parts = [part(0), part(1)]
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append(own(assemble(family, arguments, parts).state_dict()))
    for name, value in made[0].items():
        assert torch.equal(value, made[1][name])


@every_one_around_parts
def test_parts_stay_in_evaluation_mode_and_are_left_as_they_are(family, arguments):
    defence = assemble(family, arguments)
    before = within_parts(defence.state_dict())
    assert not any(module.training for module in defence.parts.modules())
    defence.train()
    assert defence.training
    assert not any(module.training for module in defence.parts.modules())
    if isinstance(defence, Fitted):
        labels = torch.arange(40) % CLASSES
        defence.fit(random_images(40), labels, random_images(40, 1), labels)
        assert defence.training
    answer(defence, random_images())
    after = within_parts(defence.state_dict())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(module.training for module in defence.parts.modules())


@every_defence
def test_its_own_tensors_read_back(family, arguments):
    parts = [part(0), part(1)]
    first = assemble(family, arguments, parts).eval()
    if isinstance(first, Fitted):
        labels = torch.arange(40) % CLASSES
        first.fit(random_images(40, 1), labels, random_images(30, 2), labels[:30])
    second = assemble(family, arguments, parts).eval()
    missing, unexpected = second.load_state_dict(own(first.state_dict()), strict=False)
    assert unexpected == []
    assert all(name.startswith("parts.") for name in missing)
    torch.testing.assert_close(
        answer(second, random_images()), answer(first, random_images()), rtol=0, atol=0
    )


@every_defence
def test_the_whole_state_reads_back(family, arguments):
    first = fitted(family, arguments)
    second = assemble(family, arguments, [part(8), part(9)]).eval()
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(
        answer(second, random_images()), answer(first, random_images()), rtol=0, atol=0
    )


@every_defence
def test_every_surface_has_a_name_of_its_own_and_finite_answers_and_gradients(family, arguments):
    defence = fitted(family, arguments)
    defence.requires_grad_(False)
    surfaces = surfaces_of(defence)
    assert len({surface.name for surface in surfaces}) == len(surfaces)
    passes = [surface.passes for surface in surfaces]
    assert passes == sorted(passes)
    for surface in surfaces:
        images = random_images().requires_grad_()
        answers = surface.answer(images, key_of(12))
        assert answers.shape[-2:] == (12, CLASSES + isinstance(defence, Abstaining)), surface.name
        assert answers.ndim == 2 or len(answers) == surface.passes, surface.name
        assert answers.isfinite().all(), surface.name
        (gradient,) = torch.autograd.grad(answers.log_softmax(dim=-1)[..., 0].sum(), images)
        assert gradient.isfinite().all(), surface.name
        assert gradient.flatten(1).abs().amax(dim=1).min() > 0, surface.name
        if surface.weights is not None:
            assert surface.weights.shape == answers.shape[:1]
            assert surface.weights.sum().item() == pytest.approx(1)


@every_deterministic_one
def test_a_surface_with_the_same_outputs_gives_the_answers_of_the_defence(family, arguments):
    defence = fitted(family, arguments)
    images = random_images()
    for surface in surfaces_of(defence):
        if surface.same_outputs:
            assert torch.equal(surface.answer(images, key_of(12)), defence(images)), surface.name


@over(lambda defence: isinstance(defence, Armed))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_of_its_own_gives_candidates_in_the_ball(family, arguments, norm):
    defence = fitted(family, arguments)
    images = random_images()
    labels = answer(defence, images).argmax(dim=1)
    for make in defence.attacks().values():
        candidates = make(defence, norm=norm, eps=0.1, seed=0)(images, labels)
        assert inside(candidates, images, 0.1, Norm(norm)).all()
        assert not torch.equal(candidates, images)


@every_deterministic_one
def test_a_deterministic_defence_is_no_mixture(family, arguments):
    assert not isinstance(assemble(family, arguments), Mixture)


@every_randomized_one
def test_all_randomness_comes_from_the_key(family, arguments):
    defence = fitted(family, arguments)
    images = random_images()
    first = defence.draw(images, key_of(12))
    assert torch.equal(defence.draw(images, key_of(12)), first)
    others = [defence.draw(images, key_of(12, seed=1)), defence.draw(images, key_of(12, draw=1))]
    if not isinstance(defence, Abstaining):  # a detector may decide the same
        assert all(not torch.equal(other, first) for other in others)
    with pytest.raises(ModelError, match=r"expected draw\(images, key\)"):
        defence(images)


@every_defence
@settings(max_examples=5)
@given(rows=st.lists(st.integers(0, 11), min_size=1, max_size=14))
def test_the_answer_to_an_image_does_not_depend_on_its_batch(family, arguments, rows):
    defence = fitted(family, arguments).double()
    images = random_images().double()
    together = answer(defence, images)
    chosen = torch.tensor(rows)
    alone = answer(defence, images[chosen], key_of(12).take(chosen))
    torch.testing.assert_close(alone, together[chosen], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_part_at_all_is_refused(family):
    with pytest.raises(UsageError, match=f"family '{family}', got 0"):
        build(family)([], **from_data(family))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "classifier"])
def test_randomized_parts_are_refused(family):
    noisy = assemble("smoothed", {})
    message = ""
    for parts in ([noisy], [noisy, noisy]):  # a family takes one part or two
        with pytest.raises(UsageError) as refused:
            build(family)(parts, **from_data(family))
        if "deterministic" in str(refused.value):
            message = str(refused.value)
    assert "expected deterministic parts" in message
    assert "got Smoothed as part 0, which is randomized" in message


@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_have_defaults_and_are_what_a_card_can_say(family):
    for name, parameter in list(inspect.signature(build(family)).parameters.items())[1:]:
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if name not in {"classes", "shape"}:
            assert isinstance(parameter.default, bool | int | float | str | tuple)


@pytest.mark.gpu
@every_defence
def test_a_defence_works_on_a_gpu(family, arguments):
    defence = assemble(family, arguments).cuda().eval()
    if isinstance(defence, Fitted):
        labels = torch.arange(40) % CLASSES
        defence.fit(random_images(40, 1), labels, random_images(30, 2), labels[:30])
    images = random_images().cuda().requires_grad_()
    key = Key(
        0,
        "test",
        ids=torch.arange(12, device="cuda"),
        draw=torch.zeros(12, dtype=torch.int64, device="cuda"),
    )
    assert answer(defence, images, key).isfinite().all()
    for surface in surfaces_of(defence):
        answers = surface.answer(images, key)
        (gradient,) = torch.autograd.grad(answers.sum(), images)
        assert gradient.isfinite().all()
        if surface.weights is not None:
            assert surface.weights.is_cuda
