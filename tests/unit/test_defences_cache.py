"""The cache: its formula in float64, its gradients, the items that it stores, and its fit."""

import math

import pytest
import torch
from oracles import Changed
from torch import nn
from torch.nn import functional

from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.defences.cache import assemble
from robustbench_kd.defences.classifier import assemble as normalised

CLASSES = 4


def part(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [
            nn.Conv2d(1, 5, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(20, 6),
            nn.ReLU(),
            nn.Linear(6, CLASSES),
        ]
        return nn.Sequential(*layers).eval().requires_grad_(False)


def images(n=10, seed=0):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def labels_of(n, classes=CLASSES, seed=0):
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def fitted(n=60, classes=CLASSES, **arguments):
    defence = assemble([part()], classes=CLASSES, **arguments).eval()
    defence.fit(images(n, 1), labels_of(n, classes), images(40, 2), labels_of(40, classes, 1))
    return defence


def set_to(defence, theta, lambda_):
    defence.theta.fill_(theta)
    defence.lambda_.fill_(lambda_)
    return defence


def surface(defence, name):
    answer = next(one.answer for one in defence.surfaces() if one.name == name)
    return lambda points: answer(points, None)


def features(points):
    """The input of the last linear layer, in double precision."""
    return functional.normalize(part().double()[:-1](points.double()), dim=1)


def cached(defence, points, theta):
    """The formula of the paper: a softmax over all items, summed within each class."""
    attention = (theta * features(points) @ defence.keys.double().T).softmax(dim=1)
    return attention @ functional.one_hot(defence.values, CLASSES).double()


@pytest.mark.parametrize("theta", [10, 90])
@pytest.mark.parametrize("lambda_", [0.1, 0.5, 0.9])
def test_the_answer_is_the_logarithm_of_the_mixture(theta, lambda_):
    defence = set_to(fitted(), theta, lambda_)
    of_part = part().double()(images().double()).softmax(dim=1)
    mixture = (1 - lambda_) * of_part + lambda_ * cached(defence, images(), theta)
    torch.testing.assert_close(defence(images()).double(), mixture.log(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(defence(images()).exp().sum(dim=1), torch.ones(10))


def test_a_class_without_items_has_the_probability_of_the_classifier():
    defence = set_to(fitted(classes=3), 90, 0.5)
    expected = part()(images()).log_softmax(dim=1)[:, 3] + math.log(0.5)
    torch.testing.assert_close(defence(images())[:, 3], expected)
    assert surface(defence, "cache-only")(images()).isfinite().all()


@pytest.mark.parametrize("classes", [3, CLASSES])
def test_a_nearly_one_hot_cache_has_a_gradient(classes):
    """The probability of a far class underflows in float32, but its logarithm has a gradient."""
    keys = torch.eye(CLASSES)[:classes].view(classes, 1, 2, 2)
    defence = assemble([nn.Flatten()], classes=CLASSES)
    defence.fit(keys, torch.arange(classes), keys, torch.arange(classes))
    set_to(defence, 90, 0.9)
    points = torch.tensor([[[[1.0, 0.0], [0.0, 0.01]]]], requires_grad=True)
    alone = surface(defence, "cache-only")(points)
    assert alone[0, 1].item() == pytest.approx(-90, rel=1e-3)
    (gradient,) = torch.autograd.grad(alone[0, 1], points, retain_graph=True)
    assert gradient.isfinite().all()
    assert gradient[0, 0, 0, 1].item() == pytest.approx(90, rel=1e-3)
    (gradient,) = torch.autograd.grad(defence(points)[0, 3], points)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_all_training_images_are_stored_sorted_by_class():
    defence = fitted(60)
    order = labels_of(60).argsort(stable=True)
    torch.testing.assert_close(
        defence.keys.double(), features(images(60, 1))[order], rtol=1e-4, atol=1e-6
    )
    assert torch.equal(defence.values, labels_of(60)[order])
    assert defence.keys.dtype == torch.float32


def test_the_allowed_number_of_items_is_stored_spread_over_the_data():
    defence = fitted(60, items=7)
    assert len(defence.keys) == len(defence.values) == 7
    rows = torch.tensor([0, 8, 17, 25, 34, 42, 51])
    assert torch.equal(defence.values, labels_of(60)[rows].sort().values)


@pytest.mark.parametrize(("items", "stored"), [(0, 120), (10, 10), (11, 10)])
def test_mirror_images_are_stored_beside_their_images(items, stored):
    defence = fitted(60, items=items, flips=True)
    assert len(defence.keys) == stored
    first = images(60, 1)[:1]
    keys = defence.keys[defence.values == labels_of(60)[0]].double()
    for view in (first, first.flip(3)):
        similarity = features(view) @ keys.T
        assert similarity.max().item() == pytest.approx(1, abs=1e-6)


def test_theta_and_lambda_are_the_best_of_the_grid_on_the_held_out_images():
    defence = fitted()
    held_out = images(40, 2)
    labels = labels_of(40, seed=1)
    scores = {}
    for theta in range(10, 91, 10):
        for tenths in range(1, 10):
            set_to(defence, theta, tenths / 10)
            scores[theta, tenths] = (defence(held_out).argmax(dim=1) == labels).sum().item()
    most = max(scores.values())
    best = max((tenths, -theta) for (theta, tenths), score in scores.items() if score == most)
    chosen = fitted()
    assert min(scores.values()) < most
    assert chosen.theta.item() == -best[1]
    assert chosen.lambda_.item() == pytest.approx(best[0] / 10)


def test_a_tie_goes_to_the_largest_lambda_and_then_to_the_smallest_theta():
    """Keys and held-out images coincide, and every pair is perfect."""
    defence = assemble([nn.Flatten()], classes=CLASSES)
    keys = torch.eye(CLASSES).view(CLASSES, 1, 2, 2)
    defence.fit(keys, torch.arange(CLASSES), keys, torch.arange(CLASSES))
    assert (defence.theta.item(), round(defence.lambda_.item(), 6)) == (10, 0.9)


def test_surfaces_are_the_classifier_the_cache_and_a_smoother_mixture():
    defence = set_to(fitted(), 90, 0.5)
    assert [one.name for one in defence.surfaces()] == ["backbone", "cache-only", "temperature"]
    assert torch.equal(surface(defence, "backbone")(images()), part()(images()))
    only = surface(defence, "cache-only")(images())
    torch.testing.assert_close(
        only.double(), cached(defence, images(), 90).log(), rtol=1e-4, atol=1e-3
    )
    smooth = surface(defence, "temperature")(images())
    torch.testing.assert_close(smooth, set_to(defence, 10, 0.5)(images()))


def query(defence, points):
    return defence._embedded(points)[1]


def test_the_features_are_the_input_of_the_last_linear_layer_where_none_is_named():
    torch.testing.assert_close(
        query(fitted(), images()).double(), features(images()), rtol=1e-4, atol=1e-6
    )


def test_without_a_linear_layer_the_features_are_the_logits():
    network = nn.Sequential(nn.Conv2d(1, CLASSES, 4), nn.Flatten())
    defence = assemble([network], classes=CLASSES)
    torch.testing.assert_close(
        query(defence, images()), functional.normalize(network(images()), dim=1)
    )


def test_named_layers_are_joined_in_their_order_and_normalised_together():
    network = part()
    defence = assemble([network], classes=CLASSES, layers=["3", "0"])
    joined = torch.cat([network[:4](images()), network[0](images()).flatten(1)], dim=1)
    torch.testing.assert_close(query(defence, images()), functional.normalize(joined, dim=1))


def test_a_normalisation_in_front_changes_no_layer_name():
    wrapped = normalised([part()], mean=[0.5], std=[2.0])
    defence = assemble([wrapped], classes=CLASSES, layers=["3"])
    expected = part()[:4]((images() - 0.5) / 2)
    torch.testing.assert_close(query(defence, images()), functional.normalize(expected, dim=1))


def test_an_unknown_layer_comes_with_the_nearest():
    named = nn.Sequential()
    named.add_module("stage1", nn.Flatten())
    with pytest.raises(UsageError, match="unknown layer 'stage2': did you mean 'stage1'"):
        assemble([named], classes=CLASSES, layers=["stage2"])


def test_a_layer_that_is_never_run_is_an_error():
    network = Changed(part(), lambda logits: logits)
    network.unused = nn.Linear(1, 1)
    with pytest.raises(ModelError, match="layer 'unused' took no part"):
        assemble([network], classes=CLASSES, layers=["unused"])(images())


def test_no_hook_stays_in_the_classifier():
    network = part()
    defence = assemble([network], classes=CLASSES, layers=["0"])
    query(defence, images())
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_an_empty_cache_says_what_to_do():
    with pytest.raises(ModelError, match="the cache is empty: fit it, or load its weights"):
        assemble([part()], classes=CLASSES)(images())


def test_loading_takes_all_items_of_the_file():
    first = fitted(60)
    second = fitted(20)
    second.load_state_dict(first.state_dict())
    assert second.keys.shape == (60, 6)
    assert torch.equal(second(images()), first(images()))


@pytest.mark.parametrize(
    "change",
    [
        {"values": torch.tensor([1, 0, 2])},
        {"values": torch.tensor([0, 1, 4])},
        {"values": torch.tensor([-1, 1, 2])},
        {"values": torch.tensor([0, 1])},
        {"keys": torch.zeros(3)},
    ],
)
def test_items_that_do_not_fit_together_are_refused(change):
    defence = fitted(3)
    state = defence.state_dict() | {"values": torch.tensor([0, 1, 2])} | change
    with pytest.raises(RuntimeError, match="expected 4 classes of items, sorted"):
        defence.load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"items": -1}, "expected items as a whole number of at least 0, got -1"),
        ({"items": 1, "flips": True}, "got items = 1 with flips"),
        ({"flips": "yes"}, "expected flips as true or false, got 'yes'"),
        ({"layers": [""]}, "unknown layer ''"),
    ],
)
def test_impossible_arguments_are_refused(arguments, expected):
    with pytest.raises(UsageError, match=expected):
        assemble([part()], classes=CLASSES, **arguments)
