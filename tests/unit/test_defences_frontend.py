"""The front end: the identity at first, its gradients and stand-ins, calibration and reversal."""

import pytest
import torch
from oracles import Changed, Linear
from torch import nn

from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.core.threat import Norm
from robustbench_kd.defences._batches import batches, spread
from robustbench_kd.defences._reversal import Reversal
from robustbench_kd.defences.frontend import assemble
from robustbench_kd.tensors.defence import Key
from robustbench_kd.tensors.geometry import inside

SHAPE = (2, 8, 8)
KINDS = ["dncnn", "unet"]
KEY = Key(0, "test", ids=torch.arange(6), draw=torch.zeros(6, dtype=torch.int64))


def backbone():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
        ).eval()


def front_end(kind="dncnn", depth=9, width=4, **arguments):
    return assemble(
        [backbone()], shape=SHAPE, kind=kind, depth=depth, width=width, **arguments
    ).eval()


def images(n=6, seed=0):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def fit(defence, n=50):
    defence.fit(images(n, 1), torch.zeros(n), images(1), torch.zeros(1))
    return defence


def masking(kind="dncnn"):
    return fit(front_end(kind, amplitude=0.1))


def surface(defence, name):
    return next(one for one in defence.surfaces() if one.name == name)


def gradient(answer, points):
    points = points.clone().requires_grad_()
    return torch.autograd.grad(answer(points)[:, 0].sum(), points)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_identity_at_first(kind, training):
    defence = front_end(kind).train(training)
    assert torch.equal(defence.front(images()), images())
    assert torch.equal(defence(images()), backbone()(images()))


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_amplitude_it_is_the_identity_after_fitting(kind):
    assert torch.equal(fit(front_end(kind))(images()), backbone()(images()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [7, 12, 33])
def test_the_depth_counts_convolutions(kind, depth):
    defence = front_end(kind, depth=depth)
    own = [module for name, module in defence.named_modules() if not name.startswith("parts")]
    assert sum(isinstance(module, nn.Conv2d) for module in own) == depth
    assert sum(isinstance(module, nn.BatchNorm2d) for module in own) == depth - 2


def test_convolutions_are_orthogonal():
    for module in front_end(amplitude=0.1).body.modules():
        if isinstance(module, nn.Conv2d):
            rows = module.weight.flatten(1)
            torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_sets_the_mean_change_of_a_pixel(kind):
    defence = fit(front_end(kind, amplitude=0.03), n=48)
    change = (defence.front(images(48, 1)) - images(48, 1)).abs().mean()
    assert change.item() == pytest.approx(0.03, rel=1e-3)
    again = {name: value.clone() for name, value in defence.state_dict().items()}
    for name, value in fit(defence, n=48).state_dict().items():
        torch.testing.assert_close(value, again[name], msg=name)


def test_fitting_fills_the_statistics_of_all_images_at_once():
    defence = front_end()
    some = images(48, 1)
    norm = next(module for module in defence.body.modules() if isinstance(module, nn.BatchNorm2d))
    norm.running_mean.fill_(7)
    fit(defence, n=48)
    first, _, convolution = defence.body[:3]
    before = convolution(torch.relu(first((some - 0.5) / 0.25)))
    torch.testing.assert_close(norm.running_mean, before.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(norm.running_var, before.var(dim=(0, 2, 3)), rtol=0.1, atol=1e-4)
    assert norm.momentum == 0.1


@pytest.mark.parametrize("training", [True, False])
def test_fitting_leaves_the_mode_as_it_is(training):
    defence = fit(front_end(amplitude=0.1).train(training))
    assert defence.training == training
    assert all(module.training == training for module in defence.body.modules())


def test_a_front_end_that_changes_nothing_has_no_amplitude():
    defence = front_end(amplitude=0.1)
    nn.init.zeros_(defence.last.weight)
    with pytest.raises(ModelError, match="changes no pixel"):
        fit(defence)


@pytest.mark.parametrize("kind", KINDS)
def test_straight_through_is_exact_with_the_gradient_of_the_backbone_behind_the_front_end(kind):
    defence = masking(kind)
    straight = surface(defence, "straight-through").answer
    points = images().requires_grad_()
    assert torch.equal(straight(points, KEY), defence(points))
    behind = gradient(backbone(), defence.front(images()).detach())
    torch.testing.assert_close(
        gradient(lambda x: straight(x, KEY), images()), behind, rtol=0, atol=0
    )
    assert (gradient(defence, images()) - behind).abs().max() > 1e-3


@pytest.mark.parametrize("fraction", [0.03, 0.1])
def test_damping_keeps_a_fraction_of_the_gradient_through_h(fraction):
    defence = masking()
    damped = surface(defence, f"damped-{fraction}").answer
    points = images().requires_grad_()
    assert torch.equal(damped(points, KEY), defence(points))
    none = gradient(lambda x: defence._damped(x, 0), images())
    full = gradient(lambda x: defence._damped(x, 1), images())
    torch.testing.assert_close(full, gradient(defence, images()))
    torch.testing.assert_close(
        gradient(lambda x: damped(x, KEY), images()), none + fraction * (full - none)
    )


def test_it_declares_four_surfaces():
    names = [(one.name, one.same_outputs) for one in front_end().surfaces()]
    assert names == [
        ("backbone", False),
        ("straight-through", True),
        ("damped-0.03", True),
        ("damped-0.1", True),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"kind": "dncn"}, "unknown kind of front end 'dncn': did you mean 'dncnn'"),
        ({"kind": 3}, "unknown kind of front end '3'"),
        ({"depth": 1}, "expected depth as a whole number of at least 2, got 1"),
        ({"depth": 6, "kind": "unet"}, "at least 7, got 6"),
        ({"depth": 33.0}, "got 33.0"),
        ({"depth": True}, "got True"),
        ({"width": 0}, "expected width as a whole number of at least 1, got 0"),
        ({"amplitude": -0.1}, r"expected amplitude as a number in \[0, 1\], got -0.1"),
        ({"amplitude": float("nan")}, "got nan"),
        ({"amplitude": "big"}, "got 'big'"),
    ],
)
def test_impossible_arguments_are_refused(arguments, expected):
    with pytest.raises(UsageError, match=expected):
        front_end(**arguments)


def test_one_part_is_enough():
    with pytest.raises(UsageError, match="expected one part for the family 'frontend', got 2"):
        assemble([backbone(), backbone()], shape=SHAPE)


class Behind(nn.Module):
    """A backbone behind any front end."""

    def __init__(self, part, front):
        super().__init__()
        self.part = part
        self.front = front

    def forward(self, points):
        return self.part(self.front(points))


def line(n=40):
    """A linear classifier of two classes, and images in the middle of the box."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(64, generator=generator)
    part = Linear(torch.stack([weight, -weight]), torch.zeros(2))
    points = 0.4 + 0.2 * torch.rand(n, 1, 8, 8, generator=generator)
    part.bias.data[0] = -2 * (points.flatten(1) @ weight).median()
    return part.requires_grad_(False), points


def dual_distance(part, points, norm):
    """The distance of each point to the other class."""
    logits = part(points)
    order = 1 if norm is Norm.LINF else 2
    length = torch.linalg.vector_norm(part.weight[0] - part.weight[1], ord=order)
    return (logits[:, 0] - logits[:, 1]).abs() / length


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_reversal_breaks_exactly_the_images_that_are_near_enough(norm, scale):
    """A front end that scales the input of a linear classifier divides all distances by it."""
    part, points = line()
    model = Behind(part, lambda x: scale * x + (1 - scale) / 2)
    eps = 0.01 if norm is Norm.LINF else 0.06
    labels = model(points).argmax(dim=1)
    away = dual_distance(part, model.front(points), norm) / scale
    clear = (away / eps - 1).abs() > 0.03
    candidates = Reversal(model, norm=norm, eps=eps, seed=0)(points, labels)
    assert inside(candidates, points, eps, norm).all()
    broken = model(candidates).argmax(dim=1) != labels
    assert torch.equal(broken[clear], (away < eps)[clear])
    assert 0.2 < broken.float().mean() < 0.9


def test_reversal_needs_no_gradient_of_the_front_end():
    part, points = line()
    model = Behind(part, lambda x: (x * 256).round() / 256)
    labels = model(points).argmax(dim=1)
    candidates = Reversal(model, norm=Norm.LINF, eps=0.03, seed=0)(points, labels)
    near = dual_distance(part, points, Norm.LINF) < 0.02
    assert near.any()
    assert (model(candidates).argmax(dim=1) != labels)[near].all()


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_a_reversal_depends_on_its_own_image_and_the_seed_alone(norm):
    defence = masking().double()
    points = images(5).double()
    labels = torch.arange(5)
    attack = defence.attacks()["reversal"](defence, norm=str(norm), eps=0.05, seed=0)
    together = attack(points, labels)
    assert torch.equal(attack(points, labels), together)
    torch.testing.assert_close(attack(points[3:], labels[3:]), together[3:], rtol=0, atol=1e-9)
    other = Reversal(defence, norm=norm, eps=0.05, seed=1)(points, labels)
    assert not torch.equal(other, together)


def test_a_reversal_changes_no_input_and_stops_at_the_first_success():
    model = Behind(Changed(line()[0], lambda logits: logits), lambda x: x)
    points = line()[1]
    before = points.clone()
    labels = model(points).argmax(dim=1)
    wrong = 1 - labels
    candidates = Reversal(model, norm=Norm.LINF, eps=0.01, seed=0)(points, wrong)
    assert torch.equal(points, before)
    assert (candidates - points).abs().max() < 0.0011, "the smallest of ten sizes already succeeds"


def test_reversal_refuses_l1():
    with pytest.raises(UsageError, match="expected linf or l2 for the reversal"):
        Reversal(front_end(), norm=Norm.L1, eps=3, seed=0)


def test_rows_are_spread_evenly_over_the_data():
    assert spread(10, 400).tolist() == list(range(10))
    assert spread(1000, 4).tolist() == [0, 250, 500, 750]
    assert spread(7, 3).tolist() == [0, 2, 4]


def test_batches_hold_every_row_once_and_in_order():
    numbers = torch.arange(450)
    parts = list(batches(torch.device("cpu"), numbers, -numbers))
    assert [len(one) for one, _ in parts] == [200, 200, 50]
    assert torch.equal(torch.cat([one for one, _ in parts]), numbers)
    assert all(torch.equal(one, -two) for one, two in parts)
