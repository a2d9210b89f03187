"""Square Attack.

The published schedule and bumps, the reference's queries number for number, balls, and
independence.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import drive, told
from pyautoattack.square import SquareAttack
from torch import nn

from robustbench_kd.attacks import _square_windows
from robustbench_kd.attacks.square import Square, SquareState
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Rows, begin_at_random
from robustbench_kd.tensors.geometry import inside
from robustbench_kd.tensors.keyed_random import uniform
from robustbench_kd.tensors.losses import margin

EXAMPLES = settings(max_examples=25, deadline=None)
THREATS = {Norm.LINF: "linf:8/255", Norm.L2: "l2:0.5", Norm.L1: "l1:4"}
NORMS = pytest.mark.parametrize("norm", list(Norm))


def threat_of(norm):
    return Threat.parse(THREATS[norm])


def random_images(n, *shape, seed=0, dtype=torch.float32):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small_net(channels=3, classes=4, seed=0, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
        )
        net = nn.Sequential(*layers, nn.Linear(72, classes)).to(dtype).eval()
    return net.requires_grad_(requires_grad=False)


def rows_of(model, images, restart=None):
    """Rows whose labels are the model's own predictions."""
    logits = model(images)
    zeros = torch.zeros(len(images), dtype=torch.int64)
    return Rows(
        images,
        logits.argmax(1),
        logits,
        torch.arange(len(images)),
        zeros if restart is None else restart,
    )


def run(attack, model, rows, threat, *, seed=0):
    """Runs all rows side by side.

    Returns every asked point, every state, and which rows were ever misclassified.
    """
    start = begin_at_random(attack, rows, threat, seed)
    rounds = drive(attack, start, model, threat.norm)
    broken = torch.stack([each.logits.argmax(1) != rows.labels for each in rounds]).any(dim=0)
    return [each.points for each in rounds], [start, *(each.state for each in rounds)], broken


def reference(model, threat, queries):
    attack = SquareAttack(
        model, {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm], queries, threat.eps
    )
    attack.rescale_schedule = False
    return attack


def reference_accuracy(model, rows, threat, queries, seed):
    attack = reference(model, threat, queries)
    attack.seed = seed
    with torch.random.fork_rng():
        found = attack.perturb(rows.images, rows.labels)
    return float((model(found).argmax(1) == rows.labels).double().mean())


# The same numbers as the reference


def numbers_for(state, norm, queries):
    """What one row draws, in the order in which the reference draws it for a batch of one."""
    channels, width = state.images.shape[1], state.images.shape[3]
    first = channels * width if norm is Norm.LINF else 25 * (1 + channels)
    each = (2 if norm is Norm.LINF else 5) + channels
    for step, size in enumerate([first] + [each] * queries):
        numbers = uniform(state.seed, "square", state.ids, state.restart, step, size)
        yield from numbers[0].tolist()


@pytest.mark.parametrize(
    ("threat", "accuracy"), [("linf:8/255", 1e-6), ("l2:0.5", 1e-5), ("l1:12", 1e-4)]
)
@pytest.mark.parametrize("size", [11, 15, 20])
def test_queries_equal_the_reference_given_its_random_numbers(monkeypatch, threat, accuracy, size):
    """At sizes where the reference's first grid is centred.

    Its l1 projection works in float32 and leaves rounding in windows without change, which it then
    scales up: sooner or later the two part.
    """
    model, threat, queries = small_net(dtype=torch.float64), Threat.parse(threat), 40
    rows = rows_of(model, random_images(1, 3, size, size, dtype=torch.float64))
    asked, states, _ = run(Square(queries=queries), model, rows, threat)

    seen, stream = [], numbers_for(states[0], threat.norm, queries)

    def watched(points):
        seen.append(points.clone())
        return model(points)

    def fed(shape):
        return torch.tensor(
            [next(stream) for _ in range(math.prod(shape))], dtype=torch.float32
        ).view(shape)

    monkeypatch.setattr(torch, "rand", fed)
    upstream = reference(watched, threat, queries)
    upstream.init_hyperparam(rows.images)
    upstream.attack_single_run(rows.images, rows.labels)
    assert len(seen) == queries + 1
    for mine, theirs in zip(asked, seen, strict=True):
        assert torch.allclose(mine, theirs, atol=accuracy)


@pytest.mark.parametrize("side", range(1, 14))
@pytest.mark.parametrize("norm", [Norm.L2, Norm.L1])
def test_bumps_are_the_reference_s(norm, side):
    upstream = reference(None, threat_of(norm), 1)
    upstream.init_hyperparam(torch.zeros(1, 1, 1, 1))
    theirs = upstream.eta(side).double()
    upright, transposed = _square_windows.bumps(side, norm)
    assert torch.allclose(upright, theirs, atol=1e-6) or torch.allclose(
        transposed, theirs, atol=1e-6
    )
    assert torch.equal(transposed, upright.T)


@NORMS
@pytest.mark.parametrize("size", [(3, 32, 32), (1, 28, 28), (3, 20, 33), (3, 33, 20)])
def test_window_sides_follow_the_published_schedule(norm, size):
    upstream = reference(None, threat_of(norm), 10000)
    windows = _square_windows.windows(torch.zeros(1, *size), norm, 0.8)
    expected = []
    for iteration in range(10000):
        side = round(math.sqrt(upstream.p_selection(iteration) * size[1] * size[2]))
        side = max(side, 1) if norm is Norm.LINF else max(side, 3)
        side += norm is not Norm.LINF and side % 2 == 0
        expected.append(min(side, *size[1:]))
    levels = torch.bucketize(torch.arange(10000), windows.halved_after)
    assert windows.sides[levels].tolist() == expected


def test_a_job_evaluates_its_first_point_and_then_its_queries():
    assert Square(queries=5).schedule(Norm.LINF) == (False,) * 6


# Where the points lie


@st.composite
def shapes(draw):
    return draw(st.sampled_from([1, 3])), draw(st.integers(1, 13)), draw(st.integers(1, 13))


@NORMS
@EXAMPLES
@given(
    shape=shapes(), eps=st.sampled_from([0.01, 0.3, 1.0]), corner=st.sampled_from([0.0, 1.0, None])
)
def test_every_asked_point_lies_in_the_ball_and_the_box(norm, shape, eps, corner):
    images = random_images(2, *shape) if corner is None else torch.full((2, *shape), corner)
    rows = rows_of(small_net(shape[0]), images)
    threat = Threat(norm, eps, str(eps))
    asked, _, _ = run(Square(queries=15), small_net(shape[0]), rows, threat)
    for points in asked:
        assert points.shape == images.shape
        assert inside(points, images, eps, norm).all()


@pytest.mark.parametrize("norm", [Norm.L2, Norm.L1])
def test_points_use_the_whole_radius_where_the_box_leaves_room(norm):
    images = torch.full((3, 3, 10, 10), 0.5)
    asked, _, _ = run(
        Square(queries=29), small_net(), rows_of(small_net(), images), Threat(norm, 0.4, "0.4")
    )
    for points in asked:
        lengths = torch.linalg.vector_norm(
            (points - images).flatten(1), ord=_square_windows._ORDER[norm], dim=1
        )
        assert torch.allclose(lengths, torch.tensor(0.4), atol=1e-5)


def test_linf_begins_with_stripes_at_the_ends_of_the_ball():
    images = torch.full((4, 3, 6, 9), 0.5)
    points = begin_at_random(
        Square(), rows_of(small_net(), images), Threat(Norm.LINF, 0.25, "0.25"), 0
    ).ask()
    assert torch.equal(points, points[:, :, :1].expand_as(points))
    assert sorted(points.unique().tolist()) == [0.25, 0.75]
    assert len(points[:, :, 0].flatten(1).unique(dim=0)) == 4


@pytest.mark.parametrize("norm", [Norm.L2, Norm.L1])
@pytest.mark.parametrize("shape", [(3, 9, 21), (3, 21, 9)])
def test_the_first_grid_covers_images_that_are_not_square(norm, shape):
    images = torch.full((2, *shape), 0.5)
    state = begin_at_random(Square(), rows_of(small_net(), images), Threat(norm, 50, "50"), 0)
    assert (state.point != images).all()


def test_a_linf_change_is_one_square_of_one_colour_per_channel():
    rows = rows_of(small_net(), torch.full((6, 3, 12, 16), 0.5))
    state = run(Square(queries=59), small_net(), rows, Threat(Norm.LINF, 0.25, "0.25"))[1][-1]
    side = round(math.sqrt(0.8 / 4 * 12 * 16))
    changed = state.point != state.best
    assert (changed.any(1).any(2).sum(1) <= side).all()
    assert (changed.any(1).any(1).sum(1) <= side).all()
    for point, where in zip(state.point, changed, strict=True):
        assert all(len(point[channel][where[channel]].unique()) <= 1 for channel in range(3))


def test_windows_reach_every_position_but_the_last():
    draws = torch.linspace(0, 1, 1000)[:-1]
    offsets = _square_windows.offsets(draws, torch.full((999,), 3), 8)
    assert sorted({row.index(0) for row in offsets.tolist()}) == [0, 1, 2, 3, 4]


def test_the_largest_uniform_number_keeps_every_window_in_the_image():
    most = torch.full((1,), 1 - 2**-24)
    for size in range(1, 513):
        for side in {1, (size + 1) // 2, size}:
            assert (
                int((_square_windows.offsets(most, torch.tensor([side]), size) >= 0).sum()) >= side
            )


# What the search does


@NORMS
def test_the_best_margin_never_rises_and_belongs_to_the_best_point(norm):
    model = small_net()
    rows = rows_of(model, random_images(5, 3, 9, 9))
    _, states, _ = run(Square(queries=59), model, rows, threat_of(norm))
    for before, after in pairwise(states):
        assert (after.margin <= before.margin).all()
        assert torch.allclose(margin(model(after.best), rows.labels), after.margin, atol=1e-5)
    assert (states[-1].margin < states[1].margin).all()


@pytest.mark.parametrize(
    ("norm", "eps", "reach"), [(Norm.LINF, 0.1, 30), (Norm.L2, 1.0, 17.3), (Norm.L1, 6.0, 6)]
)
def test_a_linear_model_falls_where_the_margin_is_well_inside_reach(norm, eps, reach):
    """300 weights are 1 in the upper half and -1 in the lower.

    The margin is a third of what the ball can take from it.
    """

    def model(images):
        lead = reach / 3 - images[:, :, :5].flatten(1).sum(1) + images[:, :, 5:].flatten(1).sum(1)
        return torch.stack([lead, torch.zeros_like(lead)], dim=1)

    rows = rows_of(model, torch.full((8, 3, 10, 10), 0.5))
    assert not rows.labels.any()
    _, _, broken = run(Square(queries=300), model, rows, Threat(norm, eps, str(eps)))
    assert broken.all()


def test_the_objective_is_minus_the_margin():
    rows = rows_of(small_net(), random_images(3, 3, 8, 8))
    state = begin_at_random(Square(), rows, threat_of(Norm.LINF), 0)
    assert torch.equal(state.objective(rows.logits), -margin(rows.logits, rows.labels)[None])


@NORMS
def test_an_equal_margin_changes_nothing(norm):
    def model(images):
        return torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)

    asked, states, _ = run(
        Square(queries=3), model, rows_of(model, random_images(2, 3, 8, 8)), threat_of(norm)
    )
    assert torch.equal(states[-1].best, asked[0])


def test_logits_that_are_not_numbers_are_never_kept():
    rows = rows_of(small_net(), random_images(2, 3, 8, 8))
    state = begin_at_random(Square(), rows, threat_of(Norm.LINF), 0)
    logits = torch.full_like(rows.logits, torch.nan)
    after = state.tell(logits, state.objective(logits), None)
    assert torch.equal(after.best, rows.images)
    assert after.margin.isinf().all()


# What it must not depend on


@NORMS
@pytest.mark.parametrize("other", ["seed", "ids", "restart"])
def test_other_names_give_other_points(norm, other):
    rows, seeds = rows_of(small_net(), random_images(1, 3, 8, 8)), (0, int(other == "seed"))
    varied = rows if other == "seed" else replace(rows, **{other: getattr(rows, other) + 1})
    first, second = (
        run(Square(queries=4), small_net(), case, threat_of(norm), seed=seed)[0]
        for case, seed in zip((rows, varied), seeds, strict=True)
    )
    assert not any(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.slow
@NORMS
def test_telling_compiles_as_one_graph(norm):
    """No host synchronisation hides in it."""
    rows = rows_of(small_net(), random_images(2, 3, 8, 8))
    state = begin_at_random(Square(), rows, threat_of(norm), 0)
    answer = told(state, small_net(), wanted=False)
    tell = torch.compile(SquareState.tell, backend="eager", fullgraph=True)
    compiled = tell(state, *answer)
    assert torch.equal(compiled.point, state.tell(*answer).point)


@pytest.mark.slow
@pytest.mark.parametrize("threat", ["linf:0.05", "l2:1", "l1:6"])
def test_robust_accuracy_over_seeds_agrees_with_the_reference(threat):
    """Restarts stand for seeds on our side.

    The means of 20 runs must agree within three standard errors.
    """
    model, images, runs, queries = small_net(), random_images(12, 3, 10, 10, seed=1), 20, 150
    threat, rows = Threat.parse(threat), rows_of(model, images)
    repeated = {
        name: torch.cat([getattr(rows, name)] * runs)
        for name in ("images", "labels", "logits", "ids")
    }
    job = torch.arange(runs).repeat_interleave(len(images))
    broken = run(Square(queries=queries), model, Rows(**repeated, restart=job), threat)[2]
    ours = 1 - broken.view(runs, -1).double().mean(1)
    theirs = torch.tensor(
        [reference_accuracy(model, rows, threat, queries, seed) for seed in range(runs)]
    ).double()
    assert 0.1 < theirs.mean() < 0.9
    error = float(((ours.var() + theirs.var()) / runs).sqrt())
    assert abs(float(ours.mean() - theirs.mean())) <= 3 * error
