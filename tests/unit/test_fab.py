"""FAB on models with known boundaries, row by row, and against AutoAttack's implementation."""

import math
from dataclasses import fields, replace

import pytest
import torch
from oracles import drive, told
from pyautoattack.fab_pt import FABAttack_PT
from torch import nn

from robustbench_kd.attacks.fab import VARIANTS, component
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Rows, begin_at_random
from robustbench_kd.tensors.geometry import distance

NORMS = list(Norm)
DUAL = {Norm.LINF: 1, Norm.L2: 2, Norm.L1: math.inf}
PACKAGE_NAMES = {Norm.LINF: "Linf", Norm.L2: "L2", Norm.L1: "L1"}
EPS = {Norm.LINF: 0.1, Norm.L2: 0.5, Norm.L1: 2.0}


def fab(name="fab-t", **settings):
    return component(**VARIANTS[name], **settings)


def threat(norm):
    return Threat(norm, EPS[norm], str(EPS[norm]))


def rows_of(model, images, labels=None, job=0):
    logits = model(images).detach()
    labels = logits.argmax(1) if labels is None else labels
    n = len(images)
    return Rows(images, labels, logits, torch.arange(n), torch.full((n,), job))


def told_state(state, model):
    """Returns the state after a round in which each row is where it says to be."""
    return state.tell(*told(state, model, ~state.checking))


def run(attack, model, rows, norm):
    """Returns the distance of the nearest misclassified point that was checked, infinite if there
    was none."""
    best = torch.full((len(rows.ids),), math.inf, dtype=rows.images.dtype)
    for each in drive(attack, begin_at_random(attack, rows, threat(norm), seed=0), model, norm):
        assert ((each.points >= 0) & (each.points <= 1)).all()
        found = ~torch.tensor(each.wanted) & (each.logits.argmax(1) != rows.labels)
        best = torch.minimum(
            best, torch.where(found, distance(each.points, rows.images, norm), math.inf)
        )
    return best


class Linear(nn.Module):
    """Logits W x + b, summed row by row so that a row's numbers do not depend on the batch."""

    def __init__(self, classes=4, size=12, seed=0, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(classes, size, generator=generator, dtype=dtype)
        self.bias = torch.randn(classes, generator=generator, dtype=dtype)

    def forward(self, images):
        return (images.flatten(1)[:, None] * self.weight).sum(2) + self.bias


class Curved(Linear):
    """The same with a bend, so that FAB does not arrive at once."""

    def forward(self, images):
        bent = torch.tanh(3 * images.flatten(1)[:, None] * self.weight)
        return bent.sum(2) + self.bias


def nearest_boundary(model, rows, norm, targets):
    """The distance to the boundary of each target where the walls of the box are far."""
    index = torch.arange(len(rows.labels))
    gap = rows.logits[index, rows.labels] - rows.logits[index, targets]
    return gap / torch.linalg.vector_norm(
        model.weight[rows.labels] - model.weight[targets], ord=DUAL[norm], dim=1
    )


def grey_images(n=20, spread=0.02):
    noise = torch.rand(n, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return 0.5 + spread * (noise - 0.5)


def fitted_net(channels):
    """A conv net whose last layer is fitted to noisy copies of six prototypes, and forty of the
    copies."""
    torch.manual_seed(channels)
    prototypes, one_hot = (
        torch.rand(6, channels, 8, 8).repeat(60, 1, 1, 1),
        torch.eye(6).repeat(60, 1),
    )
    images = 0.6 * prototypes + 0.4 * torch.rand(360, channels, 8, 8)
    body = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
    )
    head = nn.Linear(72, 6, bias=False)
    head.weight.data = torch.linalg.lstsq(
        body(images).detach(), one_hot, driver="gelsd"
    ).solution.T.contiguous()
    return nn.Sequential(body, head).requires_grad_(False), images[:40]


@pytest.mark.parametrize(
    ("name", "settings", "classes", "expected"),
    [
        ("fab-t", {}, 10, 9),
        ("fab-t", {}, 1000, 9),
        ("fab-t", {}, 2, 1),
        ("fab-t", {"restarts": 2}, 4, 6),
        ("fab", {}, 10, 1),
        ("fab", {"restarts": 5}, 10, 5),
    ],
)
def test_the_number_of_restarts(name, settings, classes, expected):
    assert fab(name, **settings).restart_count(Norm.LINF, classes) == expected


def test_a_job_is_the_rank_of_its_target_among_the_other_classes():
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0]]).expand(3, 4)
    rows = Rows(
        torch.zeros(3, 1, 1, 2),
        torch.tensor([1, 1, 1]),
        logits,
        torch.arange(3),
        torch.tensor([0, 1, 2]),
    )
    assert begin_at_random(fab(), rows, threat(Norm.LINF), 0).targets.tolist() == [3, 2, 0]


def test_the_label_is_no_target_even_where_it_is_not_the_best_class():
    logits = torch.tensor([[3.0, 4.0, 2.0], [1.0, 1.0, 0.0]])
    rows = Rows(
        torch.zeros(2, 1, 1, 2), torch.tensor([0, 1]), logits, torch.arange(2), torch.tensor([0, 0])
    )
    assert begin_at_random(fab(), rows, threat(Norm.LINF), 0).targets.tolist() == [1, 0]


def test_the_restarts_of_a_target_are_neighbours():
    logits = torch.tensor([[4.0, 3.0, 2.0]]).expand(4, 3)
    images = torch.full((4, 1, 1, 2), 0.5)
    rows = Rows(
        images,
        torch.zeros(4, dtype=torch.int64),
        logits,
        torch.zeros(4, dtype=torch.int64),
        torch.arange(4),
    )
    state = begin_at_random(fab(restarts=2), rows, threat(Norm.LINF), 0)
    assert state.targets.tolist() == [1, 1, 2, 2]
    assert torch.equal(state.points[[0, 2]], images[[0, 2]])
    assert (state.points[[1, 3]] != images[[1, 3]]).any(dim=3).all()


@pytest.mark.parametrize("norm", NORMS)
def test_later_restarts_begin_at_half_the_radius_and_follow_from_the_names(norm):
    images, model, attack = grey_images(), Linear(), fab("fab", restarts=3)
    first, second, third = (
        begin_at_random(attack, rows_of(model, images, job=job), threat(norm), 7).points
        for job in range(3)
    )
    assert torch.equal(first, images)
    for points in (second, third):
        torch.testing.assert_close(
            distance(points, images, norm), torch.full((20,), EPS[norm] / 2).double()
        )
        assert 0.3 < (points > images).double().mean() < 0.7
    assert not torch.equal(second, third)
    alone = take_rows(rows_of(model, images, job=1), torch.tensor([4]))
    assert torch.equal(begin_at_random(attack, alone, threat(norm), 7).points, second[4:5])
    assert not torch.equal(begin_at_random(attack, alone, threat(norm), 8).points, second[4:5])


def take_rows(rows, chosen):
    return Rows(**{field.name: getattr(rows, field.name)[chosen] for field in fields(rows)})


@pytest.mark.parametrize("norm", NORMS)
def test_a_random_start_stays_in_the_box(norm):
    images = torch.cat([torch.zeros(3, 3, 2, 2), torch.ones(3, 3, 2, 2)]).double()
    points = begin_at_random(
        fab("fab", restarts=2), rows_of(Linear(), images, job=1), threat(norm), 0
    ).points
    assert ((points >= 0) & (points <= 1)).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_and_checks_take_turns_and_a_check_ends_the_iteration(name):
    model, attack = Curved(), fab(name, steps=3)
    rounds = drive(
        attack,
        begin_at_random(attack, rows_of(model, grey_images(2)), threat(Norm.LINF), 0),
        model,
        Norm.LINF,
    )
    assert [each.wanted for each in rounds] == [True, False] * 3
    assert [each.state.checking.tolist() for each in rounds] == [[True, True], [False, False]] * 3


@pytest.mark.parametrize("job", [0, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_point_of_a_linear_boundary_is_found_in_three_iterations(norm, job):
    model = Linear()
    rows = rows_of(model, grey_images(), job=job)
    exact = nearest_boundary(
        model, rows, norm, rows.logits.argsort(dim=1, descending=True)[:, job + 1]
    )
    within = exact < 0.45 if norm is not Norm.L2 else exact < 0.4
    assert within.any()
    found = run(fab(steps=3), OneTarget(model, rows.labels, job), rows, norm)[within]
    assert (found >= exact[within]).all()
    assert (found <= 1.01 * exact[within]).all()


class OneTarget(nn.Module):
    """A linear model with only two classes alive per row: the label and the target of a job."""

    def __init__(self, model, labels, job):
        super().__init__()
        self.model, self.labels, self.job = model, labels, job
        clean = model(grey_images())
        others = clean.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True)
        self.dead = torch.ones_like(clean, dtype=torch.bool)
        self.dead.scatter_(1, labels[:, None], False).scatter_(1, others[:, job, None], False)

    def forward(self, images):
        return self.model(images).masked_fill(self.dead, -1e3)


@pytest.mark.parametrize("norm", NORMS)
def test_untargeted_the_nearest_of_all_linear_boundaries_is_found(norm):
    model = Linear()
    rows = rows_of(model, grey_images())
    every = [
        nearest_boundary(model, rows, norm, torch.full((20,), target)).nan_to_num(math.inf)
        for target in range(4)
    ]
    exact = torch.stack(every).min(dim=0).values
    within = exact < 0.4
    assert within.any()
    found = run(fab("fab", steps=3), model, rows, norm)[within]
    assert (found >= exact[within]).all()
    assert (found <= 1.01 * exact[within]).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_misclassified_point_keeps_beta_of_its_way_and_another_one_stays(norm):
    model, attack = Linear(), fab()
    state = begin_at_random(attack, rows_of(model, grey_images(2)), threat(norm), 0)
    state = told_state(state, model)
    right, wrong = torch.eye(4, dtype=torch.float64)[
        [int(state.labels[0]), (int(state.labels[1]) + 1) % 4]
    ]
    logits = torch.stack([right, wrong])
    values = state.objective(logits)
    after = state.tell(logits, values, None)
    assert torch.equal(after.points[0], state.points[0])
    torch.testing.assert_close(
        after.points[1], state.clean[1] + 0.9 * (state.points[1] - state.clean[1])
    )
    beside_gradients = state.tell(logits, values, torch.zeros(1, 2, 3, 2, 2, dtype=torch.float64))
    assert torch.equal(beside_gradients.points, after.points)


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_within_rounding_of_the_boundary_is_pushed_over_it(norm):
    attack, images = fab(), torch.full((1, 3, 8, 8), 0.7)
    logits = torch.tensor([[1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))]])
    rows = Rows(images, torch.tensor([0]), logits, torch.tensor([0]), torch.tensor([0]))
    gradient = torch.randn(1, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    state = begin_at_random(attack, rows, threat(norm), 0)
    after = state.tell(logits, state.objective(logits), gradient)
    assert ((after.points - images) * gradient[0]).sum() > 0
    assert distance(after.points, images, norm) < 1e-4


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_beyond_the_boundary_returns_to_it(norm):
    model, attack = Linear(classes=2), fab()
    state = begin_at_random(attack, rows_of(model, grey_images(3)), threat(norm), 0)
    beyond = told_state(state, model)
    beyond = replace(beyond, checking=torch.zeros(3, dtype=torch.bool))
    after = told_state(beyond, model)
    far = [state.objective(model(points))[0] for points in (beyond.points, after.points)]
    assert (far[0] > 0).all()
    assert (far[1].abs() < 0.2 * far[0]).all()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("norm", NORMS)
def test_without_any_gradient_a_row_stays(name, norm):
    attack, rows = fab(name), rows_of(Linear(), grey_images(3))
    state = begin_at_random(attack, rows, threat(norm), 0)
    values = state.objective(rows.logits)
    after = state.tell(
        rows.logits, values, torch.zeros(len(values), 3, 3, 2, 2, dtype=torch.float64)
    )
    assert torch.equal(after.points, rows.images)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_told_values_place_the_boundary(name):
    """They may be means over several answers, which the mean logits need not reproduce."""
    model, attack = Linear(), fab(name)
    state = begin_at_random(attack, rows_of(model, grey_images(2)), threat(Norm.LINF), 0)
    logits, values, gradient = told(state, model)
    near = state.tell(logits, 0.1 * values, gradient)
    far = state.tell(logits, values, gradient)
    assert (
        distance(near.points, state.clean, Norm.LINF) < distance(far.points, state.clean, Norm.LINF)
    ).all()


def package_distances(model, rows, norm, targeted, job, steps):
    attack = FABAttack_PT(
        model, norm=PACKAGE_NAMES[norm], n_iter=steps, targeted=targeted, device="cpu"
    )
    attack.target_class = job + 2
    found = attack.attack_single_run(
        rows.images, rows.labels, use_rand_start=False, is_targeted=targeted
    )
    wrong = model(found).argmax(1) != rows.labels
    return torch.where(wrong, distance(found, rows.images, norm), math.inf)


@pytest.mark.parametrize(
    ("name", "job", "channels"), [("fab-t", 0, 1), ("fab-t", 2, 3), ("fab", 0, 1)]
)
@pytest.mark.parametrize("norm", NORMS)
def test_the_distances_are_autoattacks(norm, name, job, channels):
    model, images = fitted_net(channels)
    rows = rows_of(model, images, job=job)
    ours = run(fab(name, steps=30), model, rows, norm)
    theirs = package_distances(model, rows, norm, name == "fab-t", job, 30)
    found = theirs < math.inf
    assert found.sum() > 20
    assert torch.equal(ours < math.inf, found)
    gap = (ours[found] - theirs[found]).abs() / theirs[found]
    assert gap.median() <= 2e-6
    middle = theirs[found].sort().values[len(theirs[found]) // 2 - 1 :][:2].mean()
    assert torch.equal(ours <= middle, theirs <= middle)
