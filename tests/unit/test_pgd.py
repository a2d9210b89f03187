"""Plain PGD: its published step, its start, and the contract of attacks."""

import pytest
import torch
from oracles import asked, drive
from torch import nn

from robustbench_kd.attacks.pgd import Pgd
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Rows, begin_at_random
from robustbench_kd.tensors.geometry import distance, inside

EPS = {Norm.LINF: 0.1, Norm.L2: 0.5}
NORMS = list(EPS)


def linear(classes=2):
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).double().requires_grad_(False)


def conv_net():
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10)]
    return nn.Sequential(*layers).double().requires_grad_(False)


def threat(norm):
    return Threat(norm, EPS[norm], "")


def images(n, seed=3):
    return torch.rand(
        n, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def rows_of(model, points, job=0, first_id=0):
    logits = model(points)
    ids = torch.arange(first_id, first_id + len(points))
    return Rows(points, logits.argmax(1), logits, ids, torch.full_like(ids, job))


def run(attack, model, rows, norm):
    """Returns all points that a run asks for."""
    return asked(drive(attack, begin_at_random(attack, rows, threat(norm), 0), model, norm))


def test_linf_steps_follow_the_sign_of_the_gradient():
    model, attack = conv_net(), Pgd(steps=10)
    rows = rows_of(model, images(4))
    point, *rest = run(attack, model, rows, Norm.LINF)
    for following in rest:
        point = point.clone().requires_grad_()
        nn.functional.cross_entropy(model(point), rows.labels, reduction="sum").backward()
        moved = point.detach() + 2.5 * 0.1 / 10 * point.grad.sign()
        point = torch.min(torch.max(moved, rows.images - 0.1), rows.images + 0.1).clamp(0, 1)
        torch.testing.assert_close(following, point, rtol=0, atol=1e-12)


def test_l2_steps_follow_the_gradient():
    model, attack = conv_net(), Pgd(steps=10)
    rows = rows_of(model, images(4))
    point, *rest = run(attack, model, rows, Norm.L2)
    for following in rest:
        point = point.clone().requires_grad_()
        nn.functional.cross_entropy(model(point), rows.labels, reduction="sum").backward()
        offset = point.detach() + 2.5 * 0.5 / 10 * nn.functional.normalize(
            point.grad.flatten(1)
        ).view_as(point)
        offset = offset - rows.images
        length = offset.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        point = (rows.images + offset * (0.5 / length).clamp(max=1)).clamp(0, 1)
        torch.testing.assert_close(following, point, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("norm", "dual"), [(Norm.LINF, 1), (Norm.L2, 2)])
def test_a_linear_model_loses_the_exact_margin(norm, dual):
    """Away from the box the margin of two classes falls by eps times the dual norm of the weights,
    and no more."""
    model, attack = linear(), Pgd(reach=10)
    rows = rows_of(model, 0.5 + 0 * images(8))
    last = run(attack, model, rows, norm)[-1]
    difference = torch.tensor([1.0, -1.0], dtype=torch.float64)
    lost = ((rows.logits - model(last)) @ difference).abs()
    expected = EPS[norm] * torch.linalg.vector_norm(
        model[1].weight[0] - model[1].weight[1], ord=dual
    )
    torch.testing.assert_close(lost, expected.expand(8), rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_a_run_evaluates_the_start_and_40_steps_inside_the_ball(norm):
    model, attack = conv_net(), Pgd()
    rows = rows_of(model, images(4))
    rounds = drive(attack, begin_at_random(attack, rows, threat(norm), 0), model, norm)
    assert [each.wanted for each in rounds] == [True] * 40 + [False]
    assert all(inside(each.points, rows.images, EPS[norm], norm).all() for each in rounds)


@pytest.mark.parametrize("norm", NORMS)
def test_start_points_are_uniform_in_the_ball(norm):
    """In two dimensions half the radius holds a quarter of the ball."""
    n = 4000
    centre = torch.full((n, 1, 1, 2), 0.5)
    rows = Rows(
        centre,
        *(torch.zeros(n, dtype=torch.int64),) * 2,
        torch.arange(n),
        torch.zeros(n, dtype=torch.int64),
    )
    offset = Pgd().start_points(rows, Threat(norm, 0.4, ""), 0) - centre
    size = distance(offset, torch.zeros_like(offset), norm)
    assert (size < 0.2).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert size.max().item() == pytest.approx(0.4, abs=0.002)
    assert offset.mean(dim=0).flatten().tolist() == pytest.approx([0, 0], abs=0.01)


def test_the_radius_of_an_l2_start_says_nothing_of_its_direction():
    n = 4000
    ids = torch.arange(n)
    rows = Rows(torch.full((n, 1, 2, 2), 0.5), ids, ids, ids, torch.zeros_like(ids))
    offset = (Pgd().start_points(rows, Threat(Norm.L2, 0.4, ""), 0) - 0.5).flatten(1)
    share = offset[:, :2].norm(dim=1) / offset.norm(dim=1)
    assert torch.corrcoef(torch.stack([offset.norm(dim=1), share]))[0, 1].abs() < 0.06


@pytest.mark.parametrize("norm", NORMS)
def test_start_points_belong_to_the_example_and_the_job_alone(norm):
    model, points = linear(), images(3)
    together = Pgd().start_points(rows_of(model, points), threat(norm), 0)
    assert torch.equal(
        Pgd().start_points(rows_of(model, points[2:], first_id=2), threat(norm), 0), together[2:]
    )
    for changed in (rows_of(model, points, job=1), rows_of(model, points, first_id=9)):
        assert (Pgd().start_points(changed, threat(norm), 0) - together).abs().max() > EPS[
            norm
        ] / 20
    assert (
        Pgd().start_points(rows_of(model, points), threat(norm), 1) - together
    ).abs().max() > EPS[norm] / 20


def test_an_example_has_as_many_jobs_as_restarts():
    assert Pgd(restarts=4).restart_count(Norm.L2, 10) == 4


def test_l1_is_refused():
    with pytest.raises(UsageError, match="apgd-ce"):
        begin_at_random(Pgd(), rows_of(linear(), images(1)), Threat(Norm.L1, 3, "3"), 0)
