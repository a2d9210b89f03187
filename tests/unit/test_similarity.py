"""Similarity: measures on networks with known answers, their intervals, and stored runs."""

import json
import math
from dataclasses import replace

import pytest
import torch
from fake_runs import planted, store
from hypothesis import given
from hypothesis import strategies as st
from oracles import conv, detached, linear, three_classes
from torch import nn

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.core.rundir import RECORD
from robustbench_kd.core.statistics import interval
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.similarity import retained_robustness as retained
from robustbench_kd.similarity.bootstrap import Series, summarise
from robustbench_kd.similarity.compare import Comparison, compare, flops, fool
from robustbench_kd.similarity.gradcam import gradcam, last_map
from robustbench_kd.similarity.transformations import (
    DOMAINS,
    INVARIANCES,
    blur,
    colour,
    crop,
    edges,
    negative,
    noise,
)
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.geometry import inside

LINF = Threat.parse("linf:0.2")
CHANGES = {**INVARIANCES, **DOMAINS}


def images(n=12, channels=1, size=8):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(3))


def subject(model, name="net", sha="0", parameters=100):
    return Subject(
        name=name,
        family="classifier",
        model=model,
        network=model,
        architecture=name,
        normalisation=None,
        checkpoint_sha256=sha,
        code_sha256="",
        notes=(),
        parameters=parameters,
    )


def other(seed=5):
    """A convolutional network with random weights whose answers to random images differ."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU()]
    built = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 10)).eval()
    built[-1].bias.data -= built(images(100)).mean(dim=0).detach()
    return built


def comparison_of(*networks, n=20, threat=LINF, batch_size=250):
    data = Dataset("random", images(n), torch.arange(n) % 10, tuple(range(100, 100 + n)), 10)
    named = tuple(subject(network, f"net-{index}") for index, network in enumerate(networks))
    return Comparison(named, data, threat, torch.device("cpu"), batch_size=batch_size)


def means(series):
    return {(one.measure, one.network): one.mean for one in series if one.weights.any()}


# Measures


def test_a_copy_of_the_teacher_is_the_most_similar():
    found = means(compare(comparison_of(other(1), other(1), other(2))))
    for name in ("", " on noise", " on blur", " on edges", " on negatives"):
        assert found[f"teacher's answer{name}", 1] == 1
        assert found[f"teacher's answer{name}", 2] < 1
    for name in (
        "fooled by attacks on the teacher",
        "attacks on it fool the teacher",
        "gradient cosine",
    ):
        assert found[name, 1] == pytest.approx(1)
        assert found[name, 2] < 1
    assert found["gradient distance", 1] == 0 < found["gradient distance", 2]
    assert found["attention nearer than independent", 1] > 0.5
    for name in ("accuracy", "same answer under other colours", "same answer under other crops"):
        assert found[name, 0] == found[name, 1]


def test_two_equal_independent_networks_win_half_of_the_time():
    found = means(compare(comparison_of(other(1), other(2), other(3), other(3))))
    assert found["attention nearer than independent", 3] == 0.5
    assert ("attention nearer than independent", 2) not in found


def test_measures_are_those_of_the_definition():
    teacher = linear()
    student = other()
    comparison = comparison_of(teacher, student)
    found = means(compare(comparison))
    x = comparison.data.images
    labels = comparison.data.labels
    answer = teacher(x).argmax(dim=1)
    own = student(x).argmax(dim=1)
    assert found["teacher's answer", 1] == pytest.approx((answer == own).double().mean().item())
    assert found["accuracy", 1] == pytest.approx((own == labels).double().mean().item())
    gradients = []
    for network in (teacher, student):
        points = x.clone().requires_grad_()
        nn.functional.cross_entropy(network(points), labels, reduction="sum").backward()
        gradients.append(points.grad.flatten(1))
    gap = (gradients[0] - gradients[1]).norm(dim=1).mean().item()
    assert found["gradient distance", 1] == pytest.approx(gap, rel=1e-4)
    cosine = nn.functional.cosine_similarity(*gradients).mean().item()
    assert found["gradient cosine", 1] == pytest.approx(cosine, rel=1e-4)


def test_only_attacks_that_work_on_their_own_network_count():
    calm = linear()
    calm.bias.data[3] += 60  # it never changes its answer, but its gradient is not quite zero
    # So far that any attack changes the student's answers.
    wide = Threat.parse("linf:0.5")
    made = compare(comparison_of(calm, other(), threat=wide))
    series = {(one.measure, one.network): one for one in made}
    assert not series["fooled by attacks on the teacher", 1].weights.any()
    assert not series["fooled by attacks on the teacher", 1].values.any()
    assert series["attacks on it fool the teacher", 1].weights.any()
    assert not series["attacks on it fool the teacher", 1].values.any()


def test_batches_change_nothing():
    large = compare(comparison_of(conv(channels=1), other(), batch_size=250))
    small = compare(comparison_of(conv(channels=1), other(), batch_size=7))
    for one, same in zip(large, small, strict=True):
        assert (one.measure, one.network) == (same.measure, same.network)
        torch.testing.assert_close(one.values, same.values, rtol=1e-4, atol=1e-5)
        assert torch.equal(one.weights, same.weights)


def test_networks_without_feature_maps_have_no_attention():
    measures = {one.measure for one in compare(comparison_of(linear(), conv(channels=1)))}
    assert not any("attention" in measure for measure in measures)


def test_progress_is_reported():
    reports = []
    comparison = comparison_of(linear(), linear(), n=10, batch_size=4)
    compare(comparison, lambda done, total: reports.append((done, total)))
    assert reports == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize(
    ("network", "threat", "error", "message"),
    [
        (linear(), "l1:1", UsageError, "expected linf or l2"),
        (
            three_classes(),
            "linf:0.1",
            UsageError,
            "'net-1' has 3 classes, the data set has 10",
        ),
        (detached(), "linf:0.1", ModelError, "'net-1' cannot be compared, as it gives no gradient"),
    ],
)
def test_networks_that_cannot_be_compared_are_refused(network, threat, error, message):
    with pytest.raises(error, match=message):
        compare(comparison_of(linear(), network, threat=Threat.parse(threat)))


def test_a_randomized_network_is_refused():
    class Random(nn.Module):
        def draw(self, images, key):
            return linear()(images)

        def forward(self, images):
            return linear()(images)

    with pytest.raises(UsageError, match="'net-1' is randomized"):
        compare(comparison_of(linear(), Random()))


def test_a_network_that_writes_into_its_images_is_refused():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = linear()

        def forward(self, images):
            return self.network(images.mul_(0.9))

    with pytest.raises(UsageError, match="'net-1' writes into the images"):
        compare(comparison_of(linear(), Writing()))


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.5"])
def test_the_transferred_attack_climbs_and_stays_inside(threat):
    network = linear()
    ball = Threat.parse(threat)
    x = images()
    labels = network(x).argmax(dim=1)

    def slope(points):
        points = points.clone().requires_grad_()
        (found,) = torch.autograd.grad(nn.functional.cross_entropy(network(points), labels), points)
        return found

    moved = fool(slope, x, ball)
    assert inside(moved, x, ball.eps, ball.norm).all()
    before = nn.functional.cross_entropy(network(x), labels, reduction="none")
    after = nn.functional.cross_entropy(network(moved), labels, reduction="none")
    assert (after > before).all()


def test_operations_are_counted():
    assert flops(subject(linear()), (1, 8, 8)) == 2 * 64 * 10
    convolutions = 2 * 9 * (1 * 6 * 64 + 6 * 6 * 16)
    assert flops(subject(conv(channels=1)), (1, 8, 8)) == convolutions + 2 * 96 * 10


# Grad-CAM


class Maps(nn.Module):
    """Two maps, an image and its negative; a linear layer weights their means."""

    def __init__(self, weights):
        super().__init__()
        self.maps = nn.Conv2d(1, 2, 1)
        self.weights = torch.tensor(weights)
        self.maps.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
        self.maps.bias.data = torch.tensor([0.0, 1.0])

    def forward(self, images):
        return self.maps(images).mean(dim=(2, 3)) @ self.weights.T


def test_gradcam_of_a_network_made_by_hand():
    """The weights of the maps are those of the class, divided by the number of pixels."""
    network = Maps([[2.0, 0.0], [1.0, 3.0], [-1.0, 0.0]])
    x = images(3)
    found = gradcam(network, network.maps, x, torch.tensor([0, 1, 2]))
    bright = x[:, 0]
    dark = 1 - x[:, 0]
    expected = torch.stack([2 * bright[0], bright[1] + 3 * dark[1], torch.zeros(8, 8)]) / 64
    torch.testing.assert_close(found, expected)


def test_small_maps_are_enlarged_to_the_image():
    network = conv(channels=1)
    layer = last_map(network, images(1))
    assert layer is network[3]
    found = gradcam(network.requires_grad_(False), layer, images(2), torch.tensor([0, 1]))
    assert found.shape == (2, 8, 8)
    assert (found >= 0).all()
    assert found.any()


def test_the_last_map_is_the_outermost_one_and_never_a_single_pixel():
    inner = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    network = nn.Sequential(inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    assert last_map(network, images(1)) is inner
    assert last_map(linear(), images(1)) is None


# Changes of images


@pytest.mark.parametrize("name", sorted(CHANGES))
@pytest.mark.parametrize("channels", [1, 3])
class TestEveryChange:
    def test_keeps_shape_and_box(self, name, channels):
        changed = CHANGES[name](images(channels=channels), torch.arange(12), 0)
        assert changed.shape == (12, channels, 8, 8)
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert not torch.equal(changed, images(channels=channels))

    def test_depends_on_the_example_and_the_seed_alone(self, name, channels):
        x = images(channels=channels)
        ids = torch.arange(100, 112)
        rows = torch.tensor([7, 2])
        whole = CHANGES[name](x, ids, 1)
        torch.testing.assert_close(CHANGES[name](x[rows], ids[rows], 1), whole[rows])
        if name in {"colours", "crops", "noise"}:
            assert not torch.equal(CHANGES[name](x, ids, 2), whole)


def test_colours_of_a_grey_picture_stay_grey():
    grey = images().expand(-1, 3, -1, -1)
    changed = colour(grey, torch.arange(12), 0)
    torch.testing.assert_close(changed, changed[:, :1].expand_as(changed), rtol=1e-3, atol=2e-3)


def test_colours_change_brightness_by_forty_percent_at_most():
    flat = torch.full((500, 1, 4, 4), 0.5)
    changed = colour(flat, torch.arange(500), 0)
    assert changed.min() >= 0.3 - 1e-6
    assert changed.max() <= 0.7 + 1e-6
    assert changed.max() - changed.min() > 0.35


def test_crops_show_between_thirty_and_sixty_percent_of_the_area():
    ramp = torch.linspace(0, 1, 64).expand(400, 1, 64, 64)
    changed = crop(ramp, torch.arange(400), 0)
    seen = (changed[:, 0, 0, -1] - changed[:, 0, 0, 0]) * 63 / 64 + 1 / 64
    assert (seen >= math.sqrt(0.3) - 0.03).all()
    assert (seen <= math.sqrt(0.6) + 0.03).all()
    assert changed.min() < 0.01
    assert changed.max() > 0.99


def test_known_changes():
    x = images()
    ids = torch.arange(12)
    assert torch.equal(negative(x, ids, 0), 1 - x)
    flat = torch.full((2, 3, 5, 5), 0.25)
    torch.testing.assert_close(blur(flat, ids[:2], 0), flat)
    assert not edges(flat, ids[:2], 0).any()
    step = torch.zeros(1, 1, 4, 6)
    step[..., 3:] = 0.5
    assert torch.equal(edges(step, ids[:1], 0)[0, 0, 0], torch.tensor([0.0, 0, 1, 1, 0, 0]))
    middle = torch.full((200, 1, 8, 8), 0.5)
    assert (noise(middle, torch.arange(200), 0) - middle).std().item() == pytest.approx(
        0.1, rel=0.03
    )


# Series and intervals


def series(values, network=0, *, weights=None, is_fraction=False, measure="m"):
    values = torch.tensor(values, dtype=torch.float64)
    weights = torch.ones_like(values) if weights is None else weights
    return Series(measure, network, values, weights, is_fraction)


NAMES = [("T", "teacher"), ("S", "student"), ("I", "independent")]


def summed(*given_series, reference=2, seed=0):
    return summarise(given_series, NAMES, reference=reference, seed=seed)


def test_a_fraction_has_wilson_s_interval():
    (row,) = summed(series([1.0] * 15 + [0.0] * 5, is_fraction=True))
    assert (row.value, row.n) == (0.75, 20)
    assert (row.ci_low, row.ci_high) == interval(15, 20)
    assert (row.model, row.role) == ("T", "teacher")


def test_a_mean_has_a_bootstrapped_interval_of_the_size_of_theory():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    (row,) = summed(series(values))
    half = 1.96 * torch.tensor(values).std().item() / 20
    assert row.value == pytest.approx(sum(values) / 400)
    assert row.ci_high - row.value == pytest.approx(half, rel=0.12)
    assert row.value - row.ci_low == pytest.approx(half, rel=0.12)


def test_differences_are_paired():
    """If two series differ by a constant, the interval of the difference has no width."""
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    mine, theirs = summed(series((values + 0.25).tolist(), 1), series(values.tolist(), 2))
    found = (mine.difference, mine.difference_low, mine.difference_high)
    assert found == pytest.approx((0.25, 0.25, 0.25))
    assert mine.ci_high - mine.ci_low > 0.3
    assert theirs.difference is None


def test_differences_are_of_the_same_measure():
    rows = summed(series([1.0, 2.0], 1, measure="a"), series([5.0, 5.0], 2, measure="b"))
    assert all(row.difference is None for row in rows)


def test_only_examples_with_a_weight_count():
    weights = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    (row,) = summed(series([1.0, 0.0, 0.0, 0.0], weights=weights, is_fraction=True))
    assert (row.value, row.n) == (0.5, 2)


def test_without_an_example_that_counts_there_is_no_number():
    nothing = torch.zeros(3, dtype=torch.float64)
    row, _ = summed(series([0.0] * 3, 1, weights=nothing, is_fraction=True), series([1.0] * 3, 2))
    assert row.n == 0
    assert (row.value, row.ci_low, row.ci_high, row.difference) == (None,) * 4


def test_intervals_follow_from_the_seed():
    values = torch.randn(30, generator=torch.Generator().manual_seed(0)).tolist()
    first, again, another = (summed(series(values), seed=seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert first.ci_low != another.ci_low


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30))
def test_an_interval_lies_within_the_values(values):
    (row,) = summed(series(values))
    assert min(values) - 1e-9 <= row.ci_low <= row.ci_high <= max(values) + 1e-9


# Stored runs


def test_robustness_retained_is_read_from_runs_of_both(tmp_path):
    store(tmp_path, planted(100, robust=80, wrong=5), model="T", checkpoint_sha256="t")
    store(tmp_path, planted(100, robust=60, wrong=5), model="S", checkpoint_sha256="s")
    store(
        tmp_path, planted(100, robust=40, wrong=5), model="S", checkpoint_sha256="s", suite="other"
    )
    networks = (
        subject(linear(), sha="t", parameters=2_000_000),
        subject(linear(), sha="s", parameters=500_000),
    )
    (found,) = retained.protocols(tmp_path, networks)
    assert found.name == "linf 8/255, standard by autoattack, 100 examples"
    parameters = [network.parameters for network in networks]
    made = retained.series(found, parameters, [10**9, 5 * 10**8])
    rows = {(row.measure, row.role): row for row in summed(*made)}
    student = rows["robustness retained", "student"]
    assert rows["robust accuracy", "teacher"].value == 0.8
    assert student.value == pytest.approx(0.75)
    assert student.ci_low < 0.75 < student.ci_high
    assert rows["robust accuracy per million parameters", "student"].value == pytest.approx(1.2)
    assert rows["robust accuracy per GFLOP", "student"].value == pytest.approx(1.2)
    assert rows["robust accuracy per GFLOP", "teacher"].value == pytest.approx(0.8)
    assert ("robustness retained", "teacher") not in rows


def test_runs_that_cannot_be_used_are_skipped(tmp_path):
    networks = (subject(linear(), sha="t"), subject(linear(), sha="s"))
    assert retained.protocols(tmp_path / "nowhere", networks) == []
    store(tmp_path, model="T", checkpoint_sha256="t")
    broken = store(tmp_path, model="S", checkpoint_sha256="s") / RECORD
    whole = broken.read_text()
    broken.write_text("{")
    assert retained.protocols(tmp_path, networks) == []
    broken.write_text(whole.replace('"complete"', '"interrupted"'))
    assert retained.protocols(tmp_path, networks) == []
    broken.write_text(whole)
    assert len(retained.protocols(tmp_path, networks)) == 1


def test_the_newest_of_several_runs_counts(tmp_path):
    store(tmp_path, planted(100, robust=80, wrong=5), model="T", checkpoint_sha256="t")
    for seed, robust in enumerate((50, 70)):
        plan = planted(100, robust=robust, wrong=5)
        path = store(tmp_path, plan, model="S", checkpoint_sha256="s", seed=seed) / RECORD
        content = json.loads(path.read_text())
        content["environment"] = {"created": f"2026-01-0{2 - seed}T00:00:00+00:00"}
        path.write_text(json.dumps(content))
    (found,) = retained.protocols(
        tmp_path, (subject(linear(), sha="t"), subject(linear(), sha="s"))
    )
    assert found.robust[1].sum() == 50


def test_norms_are_taken_from_the_threat():
    comparison = comparison_of(linear(), other(), threat=Threat.parse("l2:0.5"))
    assert comparison.threat.norm is Norm.L2
    assert means(compare(comparison)) != means(compare(replace(comparison, threat=LINF)))
