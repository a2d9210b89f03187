"""Steps to hyperplanes, against bisections in plain Python and AutoAttack's projections."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyautoattack import fab_projections

from robustbench_kd.core.threat import Norm
from robustbench_kd.tensors import hyperplane
from robustbench_kd.tensors.hyperplane import dual_length, length, step_to_hyperplane

NORMS = list(Norm)
EXAMPLES = settings(max_examples=15, deadline=None)
PACKAGE = {
    Norm.LINF: fab_projections.projection_linf,
    Norm.L2: fab_projections.projection_l2,
    Norm.L1: fab_projections.projection_l1,
}
WEIGHTS = st.one_of(st.just(0.0), st.floats(0.001, 10), st.floats(-10, -0.001))
PIXELS = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
FRACTIONS = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-1.5, 1.5))


def capacity(points, weights, excess):
    """How much of the excess the box lets a step remove."""
    down = weights * torch.where(excess < 0, -1.0, 1.0).to(weights.dtype).unsqueeze(-1)
    return (weights.abs() * torch.where(down > 0, points, 1 - points)).sum(-1)


def removed(steps, weights, excess):
    """How much of the excess a step removes."""
    return -(steps * weights).sum(-1) * torch.where(excess < 0, -1.0, 1.0)


@st.composite
def planes(draw):
    """Points, weights and an excess, a fraction of what a step in the box can remove; float64."""
    n = draw(st.integers(1, 3))
    d = draw(st.integers(1, 8))

    def tensor(elements, *shape):
        size = math.prod(shape)
        values = draw(st.lists(elements, min_size=size, max_size=size))
        return torch.tensor(values, dtype=torch.float64).view(shape)

    points = tensor(PIXELS, n, d)
    weights = tensor(WEIGHTS, n, d)
    fraction = tensor(FRACTIONS, n)
    return points, weights, fraction * capacity(points, weights, fraction)


def random_planes(n, d, fraction, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(n, d, generator=generator, dtype=torch.float64)
    points = (1.4 * numbers - 0.2).clamp(0, 1).to(dtype)
    weights = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    weights[:, ::7] = 0
    sign = torch.where(torch.arange(n) % 2 == 0, 1, -1).to(dtype)
    return points, weights, fraction * sign * capacity(points, weights, sign)


def walls_of(points, weights, excess):
    """The size of each weight, and the room up to the wall; without coordinates of no weight."""
    walls = []
    for point, weight in zip(points, weights, strict=True):
        if weight:
            is_down = weight * (excess or 1.0) > 0
            walls.append((abs(weight), point if is_down else 1 - point))
    return walls


def shortest_l1(walls, target):
    total = 0.0
    for weight, room in sorted(walls, reverse=True):
        step = min(room, target / weight)
        total += step
        target -= step * weight
    return total


def shortest_length(points, weights, excess, norm):
    """The length of the shortest step of one point; the plane must be reachable."""
    walls = walls_of(points, weights, excess)
    if norm is Norm.L1:
        return shortest_l1(walls, abs(excess))

    def moves(t):
        if norm is Norm.L2:
            return [min(t * weight, room) for weight, room in walls]
        return [min(t, room) for _, room in walls]

    low, high = 0.0, 1e4
    for _ in range(120):
        middle = (low + high) / 2
        pairs = zip(moves(middle), walls, strict=True)
        if sum(move * weight for move, (weight, _) in pairs) >= abs(excess):
            high = middle
        else:
            low = middle
    return max(moves(high), default=0.0) if norm is Norm.LINF else math.hypot(*moves(high))


@pytest.mark.parametrize("norm", NORMS)
@EXAMPLES
@given(planes())
def test_a_step_stays_in_the_box(norm, case):
    points, weights, excess = case
    moved = points + step_to_hyperplane(points, weights, excess, norm)
    assert moved.shape == points.shape
    assert moved.dtype == points.dtype
    assert ((moved >= -1e-15) & (moved <= 1 + 1e-15)).all()


@pytest.mark.parametrize("norm", NORMS)
@EXAMPLES
@given(planes())
def test_a_step_ends_on_the_plane_or_as_near_as_the_box_allows(norm, case):
    points, weights, excess = case
    gone = removed(step_to_hyperplane(points, weights, excess, norm), weights, excess)
    torch.testing.assert_close(
        gone, torch.minimum(excess.abs(), capacity(points, weights, excess)), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("norm", NORMS)
@EXAMPLES
@given(planes())
def test_no_shorter_step_reaches_the_plane(norm, case):
    points, weights, excess = case
    assume((excess.abs() < capacity(points, weights, excess)).all())
    rows = zip(points.tolist(), weights.tolist(), excess.tolist(), strict=True)
    expected = [shortest_length(*row, norm) for row in rows]
    steps = step_to_hyperplane(points, weights, excess, norm)
    assert length(steps, norm).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@EXAMPLES
@given(planes())
def test_turning_the_plane_around_changes_nothing(norm, case):
    points, weights, excess = case
    step = step_to_hyperplane(points, weights, excess, norm)
    assume((excess != 0).all())
    assert torch.equal(step_to_hyperplane(points, -weights, -excess, norm), step)


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_on_the_plane_stays(norm):
    points, weights, excess = random_planes(4, 30, 0.3)
    excess[:2] = 0
    steps = step_to_hyperplane(points, weights, excess, norm)
    assert (steps[:2] == 0).all()
    assert (steps[2:] != 0).any(dim=1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_without_weights_no_coordinate_moves(norm):
    points, weights, excess = random_planes(4, 30, 3.0)
    weights[0] = 0
    steps = step_to_hyperplane(points, weights, excess, norm)
    assert (steps[weights == 0] == 0).all()


@pytest.mark.parametrize(("norm", "moves"), [(Norm.LINF, True), (Norm.L2, False), (Norm.L1, False)])
def test_l2_and_l1_ignore_the_smallest_weights(norm, moves):
    steps = step_to_hyperplane(
        torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 1e-9]]), torch.tensor([9.0]), norm
    )
    assert steps.tolist() == [[-0.5, -0.5 if moves else 0.0]]


@pytest.mark.parametrize(
    ("norm", "expected"),
    [(Norm.LINF, [-0.05, -0.05]), (Norm.L2, [-0.06, -0.03]), (Norm.L1, [-0.075, 0.0])],
)
def test_far_from_the_walls_each_norm_divides_the_excess_in_its_own_way(norm, expected):
    points = torch.tensor([[0.1, 0.5]])
    weights = torch.tensor([[2.0, 1.0]])
    torch.testing.assert_close(
        step_to_hyperplane(points, weights, torch.tensor([0.15]), norm), torch.tensor([expected])
    )


@pytest.mark.parametrize("norm", NORMS)
def test_a_full_coordinate_leaves_the_rest_to_the_others(norm):
    """The first coordinate has room for 0.1 only and removes 0.2 of the excess."""
    points = torch.tensor([[0.1, 0.5]])
    weights = torch.tensor([[2.0, 1.0]])
    steps = step_to_hyperplane(points, weights, torch.tensor([0.5]), norm)
    torch.testing.assert_close(steps, torch.tensor([[-0.1, -0.3]]))


@pytest.mark.parametrize("norm", NORMS)
def test_points_that_share_a_plane_are_projected_as_if_alone(norm):
    points, weights, excess = random_planes(6, 40, 0.6)
    others, _, _ = random_planes(6, 40, 0.6, seed=1)
    pair = torch.stack([points, others])
    both = torch.stack([excess, -0.2 * excess])
    together = step_to_hyperplane(pair, weights, both, norm)
    for index in range(2):
        for row in range(6):
            alone = step_to_hyperplane(
                pair[index, row, None], weights[row, None], both[index, row, None], norm
            )
            assert torch.equal(together[index, row, None], alone)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.9, 0.999, 1.2])
@pytest.mark.parametrize("norm", NORMS)
def test_the_steps_are_autoattacks(norm, fraction):
    points, weights, excess = random_planes(20, 192, fraction, torch.float64)
    expected = PACKAGE[norm](points.clone(), weights.clone(), (weights * points).sum(1) - excess)
    torch.testing.assert_close(
        step_to_hyperplane(points, weights, excess, norm), expected, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.3])
@pytest.mark.parametrize("norm", NORMS)
def test_single_precision_costs_no_more_than_in_autoattack(norm, fraction):
    points, weights, excess = random_planes(20, 192, fraction)
    expected = PACKAGE[norm](points.clone(), weights.clone(), (weights * points).sum(1) - excess)
    torch.testing.assert_close(
        step_to_hyperplane(points, weights, excess, norm), expected, rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_just_within_reach_of_wildly_unequal_weights_is_nearly_reached(norm, dtype):
    points, weights, _ = random_planes(20, 3072, 1.0, torch.float64)
    points = points.to(dtype)
    weights = (weights**5).to(dtype)
    excess = 0.99999 * capacity(points, weights, torch.ones(20))
    steps = step_to_hyperplane(points, weights, excess, norm)
    gone = removed(steps, weights, excess)
    assert ((gone >= (1 - 3e-4) * excess) & (gone <= (1 + 1e-4) * excess)).all()
    assert (steps * weights <= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_if_the_plane_is_out_of_reach_even_the_smallest_weights_move_to_the_wall(norm, dtype):
    points = torch.tensor([[0.3, 0.6, 0.8]], dtype=dtype)
    weights = torch.tensor([[1e4, -1e-7, 1e-7]], dtype=dtype)
    steps = step_to_hyperplane(points, weights, torch.tensor([1e5], dtype=dtype), norm)
    torch.testing.assert_close(points + steps, torch.tensor([[0.0, 1.0, 0.0]], dtype=dtype))


def test_l1_tells_nearly_equal_weights_apart():
    points = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    weights = torch.tensor([[1, 1 - 1e-8]], dtype=torch.float64)
    excess = torch.tensor([0.3], dtype=torch.float64)
    steps = step_to_hyperplane(points, weights, excess, Norm.L1)
    assert steps[0].tolist() == pytest.approx([-0.3, 0.0])


@pytest.mark.parametrize("norm", NORMS)
def test_reading_the_values_changes_no_result(norm, monkeypatch):
    arguments = random_planes(6, 40, 0.6)
    reading = step_to_hyperplane(*arguments, norm)
    monkeypatch.setattr(hyperplane, "is_cheap_to_read", lambda _: False)
    assert torch.equal(reading, step_to_hyperplane(*arguments, norm))


@pytest.mark.parametrize("norm", NORMS)
def test_shapes_alone_decide_what_is_computed(norm):
    """A tensor without values cannot be read, and values on a GPU must not be read."""
    arguments = [values.to("meta") for values in random_planes(6, 40, 0.6)]
    assert step_to_hyperplane(*arguments, norm).shape == (6, 40)


@pytest.mark.parametrize("norm", NORMS)
def test_the_arguments_are_left_alone(norm):
    arguments = random_planes(6, 40, 0.6)
    copies = [values.clone() for values in arguments]
    step_to_hyperplane(*arguments, norm)
    for value, copy in zip(arguments, copies, strict=True):
        assert torch.equal(value, copy)


@pytest.mark.parametrize(("norm", "expected"), [(Norm.LINF, 4.0), (Norm.L2, 5.0), (Norm.L1, 7.0)])
def test_length_is_the_norm(norm, expected):
    assert length(torch.tensor([[3.0, -4.0], [0.0, 0.0]]), norm).tolist() == [expected, 0.0]


@pytest.mark.parametrize("norm", NORMS)
def test_dual_length_is_the_most_that_a_step_of_length_one_changes(norm):
    """Far from the walls a step of length |excess| / dual length is just enough."""
    _, weights, _ = random_planes(6, 40, 0.6, torch.float64)
    excess = torch.full((6,), 1e-3, dtype=torch.float64)
    steps = step_to_hyperplane(torch.full_like(weights, 0.5), weights, excess, norm)
    torch.testing.assert_close(length(steps, norm) * dual_length(weights, norm), excess)
