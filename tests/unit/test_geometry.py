"""Balls, boxes and directions, against definitions computed in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Norm
from robustbench_kd.tensors.geometry import distance, inside, project, random_start, steepest

NORMS = list(Norm)
EPS = st.floats(0.01, 6)
EXAMPLES = settings(max_examples=40, deadline=None)


@st.composite
def points_and_centres(draw, dtype=torch.float32):
    n = draw(st.integers(1, 3))
    d = draw(st.integers(1, 10))

    def tensor(low, high):
        values = st.lists(st.floats(low, high, width=32), min_size=n * d, max_size=n * d)
        return torch.tensor(draw(values), dtype=dtype).view(n, 1, 1, d)

    return tensor(-2, 3), tensor(0, 1)


def row(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).view(1, 1, 1, -1)


@EXAMPLES
@given(points_and_centres(torch.float64))
def test_distance_is_the_norm_of_the_difference(case):
    a, b = case
    gaps = (a - b).abs().flatten(1).tolist()
    expected = {
        Norm.LINF: [max(gap) for gap in gaps],
        Norm.L2: [math.hypot(*gap) for gap in gaps],
        Norm.L1: [sum(gap) for gap in gaps],
    }
    for norm in NORMS:
        assert distance(a, b, norm).tolist() == pytest.approx(expected[norm])


@pytest.mark.parametrize("norm", NORMS)
@EXAMPLES
@given(points_and_centres(), EPS)
def test_a_projection_is_inside(norm, case, eps):
    points, centre = case
    projected = project(points, centre, eps, norm)
    assert projected.shape == points.shape
    assert projected.dtype == points.dtype
    assert inside(projected, centre, eps, norm).all()


@pytest.mark.parametrize("norm", [Norm.L2, Norm.L1])
@EXAMPLES
@given(points_and_centres(), EPS)
def test_rounding_to_float32_never_leaves_the_ball(norm, case, eps):
    points, centre = case
    projected = project(points, centre, eps, norm)
    assert (distance(projected.double(), centre.double(), norm) <= eps * (1 + 1e-12)).all()


@pytest.mark.parametrize("norm", NORMS)
@EXAMPLES
@given(points_and_centres(), EPS)
def test_projecting_twice_changes_nothing(norm, case, eps):
    points, centre = case
    once = project(points, centre, eps, norm)
    torch.testing.assert_close(project(once, centre, eps, norm), once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@EXAMPLES
@given(points_and_centres(), EPS)
def test_a_point_that_is_inside_is_not_moved(norm, case, eps):
    points, centre = case
    points = points.clamp(0, 1)
    near = distance(points.double(), centre.double(), norm) <= eps
    within = inside(points, centre, eps, norm) & near
    assert torch.equal(project(points, centre, eps, norm)[within], points[within])


@EXAMPLES
@given(points_and_centres(torch.float64), EPS)
def test_linf_and_l2_projections_are_autoattacks(case, eps):
    points, centre = case
    offset = points - centre
    boxed = (centre + offset.clamp(-eps, eps)).clamp(0, 1)
    torch.testing.assert_close(project(points, centre, eps, Norm.LINF), boxed)
    length = offset.flatten(1).square().sum(1).sqrt().view(-1, 1, 1, 1)
    scaled = (centre + offset / (length + 1e-12) * length.clamp(max=eps)).clamp(0, 1)
    torch.testing.assert_close(project(points, centre, eps, Norm.L2), scaled, rtol=0, atol=1e-9)


def furthest_along(direction, centre, eps):
    """Maximises a linear function on ball and box: moves the steepest coordinates first."""
    room = torch.where(direction > 0, 1 - centre, centre)
    best = centre.clone()
    budget = eps
    for index in direction.abs().argsort(descending=True):
        step = min(float(room[index]), budget)
        best[index] += direction[index].sign() * step
        budget -= step
    return best


@EXAMPLES
@given(points_and_centres(torch.float64), EPS)
def test_the_l1_projection_is_the_nearest_point_of_ball_and_box(case, eps):
    """The nearest point p of x in a convex set has (x - p) . (z - p) <= 0 for every z of it."""
    points, centre = case
    projected = project(points, centre, eps, Norm.L1)
    for x, p, c in zip(points.flatten(1), projected.flatten(1), centre.flatten(1), strict=True):
        z = furthest_along(x - p, c, eps)
        assert float((x - p) @ (z - p)) <= 1e-9


@EXAMPLES
@given(points_and_centres(torch.float64), EPS)
def test_the_l1_projection_equals_a_bisection(case, eps):
    points, centre = case
    size = (points - centre).abs()
    room = torch.where(points > centre, 1 - centre, centre)
    low = torch.zeros(len(points), 1, 1, 1, dtype=torch.float64)
    high = size.amax((1, 2, 3), keepdim=True)
    if_free = torch.minimum(size, room).sum((1, 2, 3), keepdim=True) <= eps
    for _ in range(100):
        middle = (low + high) / 2
        above = torch.minimum((size - middle).clamp(min=0), room).sum((1, 2, 3), keepdim=True) > eps
        low = torch.where(above, middle, low)
        high = torch.where(above, high, middle)
    moved = torch.minimum((size - torch.where(if_free, 0, high)).clamp(min=0), room)
    expected = centre + (points - centre).sign() * moved
    torch.testing.assert_close(project(points, centre, eps, Norm.L1), expected, rtol=0, atol=1e-9)


def sorted_l1(points, centre, eps):
    """The l1 projection by sorting the corners of the sum of what is kept.

    The sum is linear between two corners. A coordinate starts to count where the shrinkage is its
    size, and is full where the shrinkage is its size minus its room.
    """
    offset = (points - centre).flatten(1)
    size = offset.abs()
    room = torch.where(points > centre, 1 - centre, centre).flatten(1)
    corners, order = torch.cat([size, size - room], dim=1).sort(dim=1, descending=True)
    change = torch.where(order < size.shape[1], 1.0, -1.0).double()
    slope = change.cumsum(dim=1)
    total = (change * corners).cumsum(dim=1) - slope * corners
    last = ((total < eps).sum(dim=1, keepdim=True) - 1).clamp(min=0)
    corner, reached, rate = (values.gather(1, last) for values in (corners, total, slope))
    kept = torch.minimum((size - (corner - (eps - reached) / rate)).clamp(min=0), room)
    outside = torch.minimum(size, room).sum(dim=1, keepdim=True) > eps
    moved = centre.flatten(1) + offset.sign() * kept
    return torch.where(outside, moved, points.flatten(1).clamp(0, 1)).view_as(points)


@st.composite
def awkward_l1_cases(draw):
    """Walls, ties and steps of all sizes make the piecewise linear sum both steep and flat."""
    n = draw(st.integers(1, 4))
    d = draw(st.sampled_from([1, 2, 5, 40]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def powers(low, high):
        return 2.0 ** torch.randint(low, high + 1, (n, 1, 1, d), generator=generator).double()

    near_a_wall = powers(draw(st.sampled_from([-40, -8, -2])), 0)
    on_grid = torch.randint(0, 5, (n, 1, 1, d), generator=generator).double() / 4
    middle = 0.5 * torch.ones_like(on_grid)
    centre = draw(st.sampled_from([near_a_wall, 1 - near_a_wall, on_grid, middle]))
    sign = torch.randint(-1, 2, (n, 1, 1, d), generator=generator).double()
    uneven = torch.rand(sign.shape, generator=generator).double()
    spread = draw(st.sampled_from([torch.ones_like(sign), uneven]))
    eps = draw(st.sampled_from([0.0, 1e-3, 0.25, 1.0, 3.0, 1e6]))
    steps = sign * spread * powers(draw(st.sampled_from([-20, -3, 0])), 3)
    return centre + steps, centre, eps


@settings(max_examples=200, deadline=None)
@given(awkward_l1_cases())
def test_the_l1_projection_is_that_by_sorting(case):
    points, centre, eps = case
    torch.testing.assert_close(
        project(points, centre, eps, Norm.L1), sorted_l1(*case), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8)])
@pytest.mark.parametrize("eps", [1e-6, 0.5, 12.0])
def test_the_l1_projection_of_images_is_that_by_sorting(shape, eps):
    """The points are a few large steps, as an attack takes them, or noise in every pixel."""
    pixels = torch.rand(12, *shape, generator=torch.Generator().manual_seed(0))
    centre = pixels.mul(255).round().div(255).double()
    noise = torch.randn(12, *shape, generator=torch.Generator().manual_seed(1)).double()
    for points in (centre + noise, centre + noise.sign() * (noise.abs() > 2) / 3):
        projected = project(points, centre, eps, Norm.L1)
        torch.testing.assert_close(projected, sorted_l1(points, centre, eps), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("points", "centre", "eps", "expected"),
    [
        pytest.param([1.5, -1, 0.5], [1, 0, 0.2], 0.2, [1, 0, 0.4], id="no room"),
        pytest.param([1.5, -1], [1, 0], 0.1, [1, 0], id="no room at all"),
        pytest.param([0.9, 0.1, 3], [0.4, 0.6, 0.6], 0, [0.4, 0.6, 0.6], id="no radius"),
        pytest.param([5, -5, 0.3], [0.4, 0.6, 0.6], 1e9, [1, 0, 0.3], id="every radius"),
        pytest.param([0.8] * 4, [0.5] * 4, 0.4, [0.6] * 4, id="equal sizes"),
        pytest.param([0.9], [0.4], 0.25, [0.65], id="one pixel"),
        pytest.param([7], [0.4], 0.25, [0.65], id="one pixel far away"),
        pytest.param([1e12, 0.9], [0.5, 0.5], 0.25, [0.75, 0.5], id="one pixel very far away"),
        pytest.param([0.5], [0.5], 0, [0.5], id="nothing to do"),
    ],
)
def test_the_l1_projection_where_it_degenerates(points, centre, eps, expected):
    points = row(*points, dtype=torch.float64)
    centre = row(*centre, dtype=torch.float64)
    expected = row(*expected, dtype=torch.float64)
    # As exact as the size of the largest offset allows.
    atol = 1e-15 * max(1, float((points - centre).abs().max()))
    torch.testing.assert_close(project(points, centre, eps, Norm.L1), expected, rtol=0, atol=atol)


def staircase(n=32, d=64):
    """Coordinates with little room and large offsets: Newton's method fails on the flat sum."""
    generator = torch.Generator().manual_seed(0)
    centre = 1e-12 * torch.rand(n, 1, 1, d, generator=generator, dtype=torch.float64)
    offsets = torch.rand(n, 1, 1, d, generator=generator, dtype=torch.float64)
    return centre - offsets, centre, 1e-11


def test_an_easy_row_of_an_l1_projection_does_not_depend_on_a_hard_one():
    points, centre, eps = staircase()
    hard = project(points, centre, eps, Norm.L1)
    easy = project(centre - points, 0.5 + centre, eps, Norm.L1)
    both_points = torch.cat([points, centre - points])
    both_centres = torch.cat([centre, 0.5 + centre])
    together = project(both_points, both_centres, eps, Norm.L1)
    assert torch.equal(together, torch.cat([hard, easy]))


@pytest.fixture
def _unread(monkeypatch):
    """As on a GPU, a loop does not read the values."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.usefixtures("_unread")
def test_an_l1_projection_that_reads_no_value_gives_the_same_images():
    centre = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    points = centre + torch.randn(centre.shape, generator=torch.Generator().manual_seed(1))
    exact = sorted_l1(points.double(), centre.double(), 12.0)
    torch.testing.assert_close(
        project(points.double(), centre.double(), 12.0, Norm.L1), exact, rtol=0, atol=1e-13
    )


@pytest.mark.usefixtures("_unread")
def test_an_l1_projection_that_reads_no_value_never_leaves_the_ball():
    points, centre, eps = staircase()
    projected = project(points, centre, eps, Norm.L1)
    assert (distance(projected, centre, Norm.L1) <= eps * (1 + 1e-9)).all()
    assert inside(projected, centre, eps, Norm.L1).all()


def test_a_full_l1_coordinate_leaves_its_budget_to_the_others():
    projected = project(row(3.0, 0.9, 0.5), row(0.8, 0.5, 0.5), 0.4, Norm.L1)
    torch.testing.assert_close(projected, row(1.0, 0.7, 0.5))


@pytest.mark.parametrize("norm", NORMS)
@EXAMPLES
@given(points_and_centres(), st.lists(EPS, min_size=3, max_size=3))
def test_a_radius_per_row_acts_as_each_row_alone(norm, case, radii):
    points, centre = case
    eps = torch.tensor(radii[: len(points)], dtype=torch.float64)
    together = project(points, centre, eps, norm)
    assert inside(together, centre, eps, norm).all()
    for index, radius in enumerate(eps.tolist()):
        alone = project(points[index : index + 1], centre[index : index + 1], radius, norm)
        assert torch.equal(together[index : index + 1], alone)


def test_linf_inside_uses_the_rounded_bounds_of_the_pixels():
    centre = row(*torch.linspace(0, 1, 97).tolist())
    eps = 8 / 255
    edge = (centre + eps).clamp(max=1)
    assert float(distance(edge.double(), centre.double(), Norm.LINF)) > eps
    assert inside(edge, centre, eps, Norm.LINF).all()
    beyond = centre.clone()
    beyond[..., 3] = torch.nextafter(edge[..., 3], torch.tensor(2.0))
    assert not inside(beyond, centre, eps, Norm.LINF).any()


@pytest.mark.parametrize(("eps", "tolerance"), [(0.5, 1e-6), (4.0, 4e-6)])
@pytest.mark.parametrize("norm", [Norm.L2, Norm.L1])
def test_l2_and_l1_inside_allow_a_millionth(norm, eps, tolerance):
    centre = torch.zeros(1, 1, 1, 64, dtype=torch.float64)
    point = torch.full_like(centre, eps / (64 if norm is Norm.L1 else 8))
    assert inside(point * (1 + 0.9 * tolerance / eps), centre, eps, norm).all()
    assert not inside(point * (1 + 1.1 * tolerance / eps), centre, eps, norm).any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [-1e-8, 1 + 1e-6, math.nan])
def test_no_point_outside_the_box_is_inside(norm, value):
    assert inside(row(value, 0.5), row(0.0, 0.5), 6.0, norm).tolist() == [False]


def test_inside_decides_on_every_row_alone():
    points = torch.tensor([[0.1, 0.1], [0.1, 0.4]]).view(2, 1, 1, 2)
    assert inside(points, torch.zeros(2, 1, 1, 2), 0.2, Norm.LINF).tolist() == [True, False]


def test_the_steepest_directions_are_the_sign_and_the_unit_vector():
    gradient = row(3.0, 0.0, -4.0)
    assert torch.equal(steepest(gradient, Norm.LINF), row(1.0, 0.0, -1.0))
    torch.testing.assert_close(steepest(gradient, Norm.L2), row(0.6, 0.0, -0.8))


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_a_zero_gradient_has_no_direction(norm):
    assert torch.equal(steepest(row(0.0, 0.0), norm), row(0.0, 0.0))


def test_l1_has_neither_plain_steps_nor_starts():
    with pytest.raises(UsageError, match=r"expected linf or l2 .* got l1"):
        steepest(row(1.0), Norm.L1)
    with pytest.raises(UsageError, match=r"expected linf or l2 .* got l1"):
        random_start(row(1.0), 1.0, Norm.L1, torch.Generator())


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
@EXAMPLES
@given(points_and_centres(), EPS, st.integers(0, 2**32))
def test_random_starts_are_inside_and_follow_from_the_generator(norm, case, eps, seed):
    _, centre = case
    before = torch.get_rng_state()
    first = random_start(centre, eps, norm, torch.Generator().manual_seed(seed))
    second = random_start(centre, eps, norm, torch.Generator().manual_seed(seed))
    assert torch.equal(first, second)
    assert inside(first, centre, eps, norm).all()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_random_starts_fill_the_ball_evenly(norm):
    """In the plane a ball of half the radius holds a quarter of the points."""
    centre = torch.full((4000, 1, 1, 2), 0.5)
    starts = random_start(centre, 0.2, norm, torch.Generator().manual_seed(0))
    near = (distance(starts, centre, norm) < 0.1).float().mean()
    assert float(near) == pytest.approx(0.25, abs=0.03)
    assert (starts - 0.5).mean((0, 1, 2)).abs().max() < 0.01
