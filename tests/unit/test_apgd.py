"""Auto-PGD.

Parity with AutoAttack from the same start points, known answers, and the contract of attacks.
"""

import math

import pytest
import torch
from oracles import asked, drive, told
from pyautoattack import autopgd_base
from torch import nn

from robustbench_kd.attacks.apgd import Apgd
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Rows, begin_at_random
from robustbench_kd.tensors.geometry import distance, inside, project
from robustbench_kd.tensors.losses import margin

LOSSES = ["ce", "margin", "dlr", "targeted-dlr"]
EPS = {Norm.LINF: 8 / 255, Norm.L2: 0.5, Norm.L1: 6.0}
CHECKPOINTS = [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.fixture
def float64():
    """AutoAttack keeps its tables in the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def conv_net():
    torch.manual_seed(1)
    layers = [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(128, 10)).requires_grad_(False)


def linear(classes=10, shape=(3, 8, 8)):
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes)).requires_grad_(False)


def threat(norm, eps=None):
    return Threat(norm, EPS[norm] if eps is None else eps, "")


def images(n, shape=(3, 8, 8), seed=3):
    return torch.rand(
        n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(torch.get_default_dtype())


def rows_of(model, points, job=0, first_id=0):
    logits = model(points)
    ids = torch.arange(first_id, first_id + len(points))
    job = torch.full_like(ids, job) if isinstance(job, int) else job
    return Rows(points, logits.argmax(1), logits, ids, job)


def run(attack, model, rows, ball):
    """Returns the last state of a run, and all points that it asked for."""
    rounds = drive(attack, begin_at_random(attack, rows, ball, 0), model, ball.norm)
    return rounds[-1].state, asked(rounds)


class Recorder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.points = model, []

    def forward(self, points):
        self.points.append(points.detach().clone())
        return self.model(points)


def autoattack(model, rows, ball, attack, targets):
    """Runs the package; returns its best points, their losses, and all points that it evaluated."""
    names = {Norm.LINF: "Linf", Norm.L2: "L2", Norm.L1: "L1"}
    options = {"n_iter": attack.steps, "norm": names[ball.norm], "eps": ball.eps, "device": "cpu"}
    recorder = Recorder(model)
    if attack.loss == "targeted-dlr":
        package = autopgd_base.APGDAttack_targeted(recorder, **options)
        package.y_target = targets
    else:
        package = autopgd_base.APGDAttack(
            recorder, loss="ce" if attack.loss == "ce" else "dlr", **options
        )
    if attack.loss == "margin":  # which the package does not know
        package.dlr_loss = lambda logits, labels: -margin(logits, labels)
    package.init_hyperparam(rows.images)
    torch.manual_seed(0)
    if attack.large_radius:
        early = math.ceil(0.3 * attack.steps)
        radii, steps = (
            [3 * ball.eps, 2 * ball.eps, ball.eps],
            [early, early, attack.steps - 2 * early],
        )
        best, _, loss, _ = package.decr_eps_pgd(rows.images, rows.labels, radii, steps)
    else:
        best, _, loss, _ = package.attack_single_run(rows.images, rows.labels)
    return best, loss, torch.stack(recorder.points)


def both(make, attack, ball, n=6):
    """Runs the package and then the attack from the package's start points.

    Targets differ from row to row.
    """
    model = make().to(torch.get_default_dtype())
    rows = rows_of(model, images(n), job=torch.arange(n) if attack.loss == "targeted-dlr" else 0)
    targets = attack.begin(rows, ball, rows.images, 0).targets
    theirs = autoattack(model, rows, ball, attack, targets)
    rounds = drive(attack, attack.begin(rows, ball, theirs[2][0], 0), model, ball.norm)
    state = rounds[-1].state
    return theirs, (state.best, state.best_loss, asked(rounds))


@pytest.mark.parametrize("make", [conv_net, linear])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_every_iterate_equals_autoattacks_bit_for_bit(norm, loss, make):
    (best, best_loss, points), ours = both(make, Apgd(loss=loss), threat(norm))
    assert torch.equal(ours[0], best)
    assert torch.equal(ours[1], best_loss)
    assert torch.equal(ours[2], points)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_every_iterate_equals_autoattacks_in_float64(norm, loss):
    (best, _, points), ours = both(conv_net, Apgd(loss=loss), threat(norm))
    torch.testing.assert_close(ours[0], best, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[2], points, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_short_runs_equal_autoattacks_too(steps):
    """The windows shrink with the steps."""
    (best, _, points), ours = both(conv_net, Apgd(loss="ce", steps=steps), threat(Norm.LINF))
    assert torch.equal(ours[0], best)
    assert torch.equal(ours[2], points)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("large_radius", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_l1_iterate_equals_autoattacks_with_the_same_projection(
    loss, large_radius, monkeypatch
):
    """AutoAttack's own projection rounds to float32, and so leaves specks that count as support."""
    monkeypatch.setattr(
        autopgd_base, "L1_projection", lambda x, y, eps: project(x + y, x, eps, Norm.L1) - (x + y)
    )
    (best, _, points), ours = both(
        conv_net, Apgd(loss=loss, large_radius=large_radius), threat(Norm.L1)
    )
    torch.testing.assert_close(ours[0], best, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[2], points, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [conv_net, linear])
@pytest.mark.parametrize("large_radius", [False, True])
def test_l1_paths_equal_autoattacks_until_its_specks_count_and_end_as_high(large_radius, make):
    attack, ball, n = Apgd(loss="ce", large_radius=large_radius), threat(Norm.L1), 9
    (_, best_loss, points), ours = both(make, attack, ball, n)
    supports = [(path != images(n)).flatten(2).sum(dim=2) for path in (points, ours[2])]
    alike = (supports[0] == supports[1]).cumprod(dim=0).bool()
    assert alike.float().mean() > 0.02
    assert (ours[2] - points).abs().flatten(2).amax(dim=2)[alike].max() < 1e-5
    torch.testing.assert_close(ours[1], best_loss, rtol=0.01, atol=0)


@pytest.mark.parametrize(("norm", "dual"), [(Norm.LINF, 1), (Norm.L2, 2), (Norm.L1, math.inf)])
def test_a_linear_model_loses_the_exact_margin(norm, dual):
    """Away from the box the margin of two classes falls by eps times the dual norm of the weights,
    and no more."""
    model, eps = linear(classes=2), {Norm.LINF: 0.1, Norm.L2: 0.3, Norm.L1: 0.4}[norm]
    # Equal steps in several pixels only come near the optimum, which is one pixel.
    if norm is Norm.L1:
        model[1].weight[:, torch.arange(192) != 17] = 0
    rows = rows_of(model, 0.45 + 0.1 * images(8))
    state, _ = run(Apgd(loss="ce"), model, rows, threat(norm, eps))
    lost = ((rows.logits - model(state.best)) @ torch.tensor([1.0, -1.0])).abs()
    weight = model[1].weight[0] - model[1].weight[1]
    expected = eps * torch.linalg.vector_norm(weight, ord=dual)
    torch.testing.assert_close(lost, expected.expand(8), rtol=1e-4, atol=0)


def test_steps_halve_at_the_published_checkpoints_where_nothing_improves():
    attack, n = Apgd(loss="ce"), 2
    rows = rows_of(linear(), images(n))
    state = begin_at_random(attack, rows, threat(Norm.LINF), 0)
    halved, size = [], state.step_size
    for step in range(101):
        state = state.tell(torch.zeros(n, 10), torch.full((1, n), -2.3), torch.zeros(1, n, 3, 8, 8))
        if not torch.equal(state.step_size, size):
            torch.testing.assert_close(state.step_size, size / 2)
            halved.append(step)
        size = state.step_size
    assert halved == CHECKPOINTS


def test_steps_stay_long_where_every_step_improves():
    attack, n = Apgd(loss="ce"), 2
    rows = rows_of(linear(), images(n))
    state = begin_at_random(attack, rows, threat(Norm.LINF), 0)
    for step in range(101):
        values = torch.full((1, n), 0.1 * step)
        state = state.tell(torch.zeros(n, 10), values, torch.ones(1, n, 3, 8, 8))
    assert torch.equal(state.step_size, torch.full((n,), 2 * EPS[Norm.LINF]))


def test_a_halved_row_restarts_from_its_best_point_with_the_gradient_there():
    """Only the sixth point is good, so the step after the first checkpoint begins there.

    Momentum goes on.
    """
    attack, ball = Apgd(loss="ce"), threat(Norm.LINF, 0.3)
    rows = rows_of(linear(), 0.45 + 0.1 * images(1))
    state = begin_at_random(attack, rows, ball, 0)
    generator, gradients, points = torch.Generator().manual_seed(0), [], []
    for step in range(23):
        points.append(state.ask())
        gradients.append(torch.randn(1, 1, 3, 8, 8, generator=generator))
        state = state.tell(
            torch.zeros(1, 10), torch.tensor([[3.0 if step == 5 else 0.0]]), gradients[-1]
        )
    base, direction = points[5], gradients[5][0].sign()
    moved = project(base + 0.3 * direction, rows.images, 0.3, Norm.LINF)
    expected = base + 0.75 * (moved - base) + 0.25 * (base - points[21])
    torch.testing.assert_close(state.ask(), project(expected, rows.images, 0.3, Norm.LINF))


@pytest.mark.parametrize(
    ("norm", "large_radius", "stages"),
    [(Norm.LINF, False, [100]), (Norm.L2, True, [100]), (Norm.L1, True, [30, 30, 40])],
)
def test_a_run_costs_one_gradient_per_step_and_one_forward_pass_more_per_stage(
    norm, large_radius, stages
):
    schedule = Apgd(loss="ce", large_radius=large_radius).schedule(norm)
    assert schedule == tuple(wanted for steps in stages for wanted in [True] * steps + [False])


def test_the_last_point_of_a_stage_needs_no_gradient():
    """A stage begins at the best point so far, so the gradient at the end of the one before is
    never used."""
    attack, model, ball = Apgd(loss="ce", steps=10, large_radius=True), conv_net(), threat(Norm.L1)
    rows = rows_of(model, images(3))
    state, points = begin_at_random(attack, rows, ball, 0), []
    for _ in attack.schedule(Norm.L1):
        points.append(state.ask())
        state = state.tell(*told(state, model))
    assert torch.equal(torch.stack(points), run(attack, model, rows, ball)[1])


def test_the_margin_works_for_two_classes_and_rises_where_the_label_loses():
    model, attack = linear(classes=2), Apgd(loss="margin", steps=20)
    rows = rows_of(model, images(8))
    state, _ = run(attack, model, rows, threat(Norm.LINF, 0.02))
    torch.testing.assert_close(state.best_loss, -margin(model(state.best), rows.labels))
    assert (state.best_loss > -margin(rows.logits, rows.labels)).all()


def test_large_radius_shrinks_the_ball_in_three_stages():
    attack, model = Apgd(loss="ce", steps=20, large_radius=True), conv_net()
    rows = rows_of(model, images(8))
    _, points = run(attack, model, rows, threat(Norm.L1))
    for stage, radius in ((points[:7], 18), (points[7:14], 12), (points[14:], 6)):
        assert all(inside(each, rows.images, radius, Norm.L1).all() for each in stage)
        assert distance(stage[0], rows.images, Norm.L1).tolist() == pytest.approx(
            [radius] * 8, rel=1e-4
        )


def test_other_norms_take_no_notice_of_large_radius():
    rows = rows_of(linear(), images(4))
    plain, large = (
        begin_at_random(Apgd(loss="ce", large_radius=flag), rows, threat(Norm.L2), 0)
        for flag in (False, True)
    )
    assert torch.equal(plain.point, large.point)


@pytest.mark.parametrize("norm", list(Norm))
def test_start_points_lie_on_the_ball(norm):
    rows, ball = rows_of(linear(), 0.4 + 0.2 * images(8)), threat(norm)
    points = Apgd(loss="ce").start_points(rows, ball, 0)
    assert inside(points, rows.images, ball.eps, norm).all()
    assert distance(points, rows.images, norm).tolist() == pytest.approx([ball.eps] * 8, rel=1e-4)


@pytest.mark.parametrize("other", ["seed", "job", "id", "loss"])
def test_start_points_differ_between(other):
    model, points = linear(), images(1)
    job, example = int(other == "job"), int(other == "id")
    attack = Apgd(loss="dlr" if other == "loss" else "ce")
    one = Apgd(loss="ce").start_points(rows_of(model, points), threat(Norm.LINF), 0)
    two = attack.start_points(
        rows_of(model, points, job, example), threat(Norm.LINF), int(other == "seed")
    )
    assert (one - two).abs().max() > EPS[Norm.LINF] / 2


def test_a_targeted_restart_never_aims_at_the_label_and_never_forgets_the_top_class():
    """The mean logits of a mixture need not put the label first."""
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0]] * 3)
    rows = Rows(
        images(3), torch.ones(3, dtype=torch.int64), logits, torch.arange(3), torch.arange(3)
    )
    state = begin_at_random(Apgd(loss="targeted-dlr"), rows, threat(Norm.LINF), 0)
    assert state.targets.tolist() == [0, 2, 3]


def test_a_targeted_restart_aims_at_the_next_most_likely_class():
    logits = torch.tensor([[0.1, 5.0, 3.0, 4.0, -1.0]] * 4)
    rows = Rows(images(4), logits.argmax(1), logits, torch.arange(4), torch.arange(4))
    assert begin_at_random(
        Apgd(loss="targeted-dlr"), rows, threat(Norm.LINF), 0
    ).targets.tolist() == [
        3,
        2,
        0,
        4,
    ]


@pytest.mark.parametrize(
    ("attack", "classes", "jobs"),
    [
        (Apgd(loss="ce"), 10, 1),
        (Apgd(loss="dlr", restarts=5), 10, 5),
        (Apgd(loss="targeted-dlr"), 10, 9),
        (Apgd(loss="targeted-dlr", targets=5), 10, 5),
        (Apgd(loss="targeted-dlr"), 4, 3),
    ],
)
def test_an_example_has_as_many_jobs_as_restarts_or_possible_targets(attack, classes, jobs):
    assert attack.restart_count(Norm.LINF, classes) == jobs


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_row_survives_one_evaluation_that_overflows(norm, bad):
    attack, model = Apgd(loss="ce", steps=10), conv_net()
    rows = rows_of(model, images(3))
    state = begin_at_random(attack, rows, threat(norm), 0)
    for step in range(11):
        logits, values, gradient = told(state, model)
        if step == 3:
            logits[0] = values[:, 0] = math.nan
            gradient[0, 0, 0, 0, 0] = bad
        state = state.tell(logits, values, gradient)
        assert inside(state.ask(), rows.images, EPS[norm], norm).all()
    assert state.best_loss.isfinite().all()


def test_a_finished_row_may_be_told_again():
    attack, model = Apgd(loss="ce", steps=3), linear()
    rows, ball = rows_of(model, images(2)), threat(Norm.LINF)
    state, _ = run(attack, model, rows, ball)
    for _ in range(5):
        state = state.tell(*told(state, model))
        assert inside(state.ask(), rows.images, ball.eps, ball.norm).all()
