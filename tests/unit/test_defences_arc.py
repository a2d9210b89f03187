"""ARC on members with known answers, the order of its members, and the images that it keeps."""

import itertools

import pytest
import torch
from oracles import Linear, Quantised, constant, conv, detached
from torch import nn

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Norm
from robustbench_kd.defences import frontend
from robustbench_kd.defences._arc import Arc
from robustbench_kd.defences.ensemble import assemble
from robustbench_kd.tensors.defence import Armed, Surface
from robustbench_kd.tensors.geometry import distance, inside, project, steepest
from robustbench_kd.tensors.hyperplane import dual_length

SHAPE = (1, 8, 8)
WEIGHTS = [[0.5, 0.5], [0.2, 0.8], [0.3, 0.5, 0.2], [0.1, 0.2, 0.3, 0.4]]
NORMS = ["linf", "l2"]


def uniform(n, low=0.0, high=1.0, shape=SHAPE):
    return low + (high - low) * torch.rand(n, *shape, generator=torch.Generator().manual_seed(n))


def grey():
    """One image in the middle of the box, of class 0."""
    return torch.full((1, *SHAPE), 0.5), torch.zeros(1, dtype=torch.int64)


def apart(count, classes=3, seed=0):
    """Linear members that read disjoint sets of pixels."""
    generator = torch.Generator().manual_seed(seed)
    size = 64 // count
    weights = torch.zeros(count, classes, 64)
    for index in range(count):
        columns = slice(index * size, (index + 1) * size)
        weights[index][:, columns] = torch.randn(classes, size, generator=generator)
    return [Linear(weight, -weight.sum(dim=1) / 2).requires_grad_(False) for weight in weights]


def away(member, points, labels, norm):
    """The distance of each point to a wrong answer of a linear member, 0 if it is already wrong."""
    logits = member(points)
    classes = torch.arange(len(member.weight))
    gaps = logits.gather(1, labels[:, None]) - logits
    lengths = dual_length(member.weight[labels][:, None] - member.weight[None], Norm(norm))
    far = torch.where(classes == labels[:, None], torch.inf, gaps / lengths)
    return far.amin(dim=1).clamp(min=0)


def wrong(members, points, labels):
    return torch.stack([member(points).argmax(dim=1) != labels for member in members])


def accuracy(defence, points, labels):
    correct = ~wrong(defence.members(), points, labels)
    return (defence.weights.double()[:, None] * correct).sum(dim=0)


def least(defence, far, eps):
    """The least expected accuracy if all members nearer than eps are fooled at once."""
    return (defence.weights.double()[:, None] * (far >= eps)).sum(dim=0)


def crossing(count, images, norm, eps, seed, *, opposite):
    """An ensemble of members that predict class 0 of 2, and their distances to class 1.

    The distances are random, 0.5 to 1.5 eps.
    """
    generator = torch.Generator().manual_seed(seed)
    members = []
    distances = []
    shared = torch.randn(64, generator=generator)
    for index in range(count):
        own = torch.randn(64, generator=generator)
        spread, extra = torch.rand(2, generator=generator)
        direction = shared * (-1) ** index + 0.3 * own if opposite else own
        weight = direction * 10 ** (2 * spread - 1)
        far = eps * (0.5 + extra)
        half = (far * dual_length(weight, Norm(norm)) - images.flatten() @ weight) / 2
        member = Linear(torch.stack([weight / 2, -weight / 2]), torch.stack([half, -half]))
        members.append(member.requires_grad_(False))
        distances.append(far.item())
    return assemble(members), distances


def line(scale, reach, towards):
    """A member that predicts class 0 of 2 until the mean pixel has moved from 0.5 by `reach`.

    `towards` is the direction, 1 or -1.
    """
    weight = torch.full((64,), -towards * scale / 128)
    bias = scale * (reach / 2 + towards / 4)
    return Linear(torch.stack([weight, -weight]), torch.tensor([bias, -bias])).requires_grad_(False)


def descend(defence, images, labels, eps, start):
    """Plain PGD on the exact mean loss."""
    points = start
    for _ in range(40):
        points = points.detach().requires_grad_()
        mean = 0
        for weight, member in zip(defence.weights, defence.members(), strict=True):
            loss = nn.functional.cross_entropy(member(points), labels, reduction="sum")
            mean = mean + weight * loss
        (gradient,) = torch.autograd.grad(mean, points)
        step = eps / 10 * steepest(gradient, Norm.LINF)
        points = project(points.detach() + step, images, eps, Norm.LINF)
    return points


class Recorder:
    """Answers as a member does and notes the order of the members."""

    def __init__(self, member, name, order):
        self.member = member
        self.name = name
        self.order = order

    def __call__(self, images, key):
        self.order.append(self.name)
        return self.member(images)


class Masked(Quantised):
    """A member whose gradient is zero everywhere; it declares a surface that has a gradient."""

    def surfaces(self):
        return [
            Surface(
                name="straight-through",
                answer=lambda images, _key: self.network(images),
                same_outputs=False,
            )
        ]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("eps", [0.01, 0.03])
def test_all_members_that_read_disjoint_pixels_and_can_be_fooled_are_fooled(weights, eps):
    defence = assemble(apart(len(weights)), weights=weights)
    images = uniform(40, 0.3, 0.7)
    labels = defence.members()[0](images).argmax(dim=1)
    far = torch.stack([away(member, images, labels, "linf") for member in defence.members()])
    found = Arc(defence, norm="linf", eps=eps, seed=0)(images, labels)
    best = least(defence, far, eps)
    torch.testing.assert_close(accuracy(defence, found, labels), best)
    assert (best < accuracy(defence, images, labels)).float().mean() > 0.2
    assert (best > 0).float().mean() > 0.1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("opposite", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_one_round_fools_a_member_if_any_linear_member_can_be_fooled(norm, opposite, count):
    """Consistency, with steps of the radius, for all scales and orders of members.

    The members share all pixels.
    """
    images = uniform(1, 0.4, 0.6)
    labels = torch.zeros(1, dtype=torch.int64)
    possible = []
    for seed in range(25):
        defence, far = crossing(count, images, norm, 0.1, seed, opposite=opposite)
        found = Arc(defence, norm=norm, eps=0.1, seed=0, step=0.1, rounds=1)(images, labels)
        possible.append(min(far) < 0.1)
        assert (accuracy(defence, found, labels).item() < 1 - 1e-6) == possible[-1], seed
    assert 0 < sum(possible) < 25


def test_one_round_for_l2_fools_two_members_that_are_both_near():
    """Closed form: the second step leaves 0.87 of the radius for the first member.

    It takes 0.48 for the second one.
    """
    defence = assemble(apart(2))
    images = uniform(200, 0.3, 0.7)
    labels = defence.members()[0](images).argmax(dim=1)
    far = torch.stack([away(member, images, labels, "l2") for member in defence.members()])
    near = ((far > 0) & (far < 0.15 / 3)).all(dim=0)
    found = Arc(defence, norm="l2", eps=0.15, seed=0, step=0.15, rounds=1)(images, labels)
    assert near.sum() > 3
    assert (accuracy(defence, found, labels)[near] == 0).all()


def test_a_push_crosses_the_boundary_by_a_twentieth_of_the_radius():
    """Two members read a pixel each. The first is out of reach, the second half the radius away.

    The second one needs a push of 1 + 0.05.
    """
    members = []
    for pixel, far in enumerate((0.3, 0.05)):
        weight = torch.zeros(2, 64)
        weight[0, pixel] = 1
        members.append(Linear(weight, torch.tensor([far - 0.5, 0.0])).requires_grad_(False))
    images, labels = grey()
    found = Arc(assemble(members), norm="l2", eps=0.1, seed=0, step=0.1, rounds=1)(images, labels)
    expected = torch.zeros(64)
    expected[:2] = torch.tensor([-1.0, -1.05]) * 0.1 / (1 + 1.05**2) ** 0.5
    torch.testing.assert_close((found - images).flatten(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("norm", "step"), [("linf", 0.04), ("l2", 0.01)])
def test_a_round_goes_as_far_as_published(norm, step):
    images, labels = grey()
    defence = assemble([line(1.0, 0.3, towards=1)] * 2)
    found = Arc(defence, norm=norm, eps=0.04, seed=0, rounds=1)(images, labels)
    assert distance(found, images, Norm(norm)).item() == pytest.approx(step, rel=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_a_round_without_a_gain_is_the_start_of_the_next(norm):
    """Steps of a quarter of the radius reach 0.6 of it in the third round."""
    images, labels = grey()
    eps = 0.1
    defence = assemble([line(1.0, 0.6 * eps / (1 if norm == "linf" else 8), towards=1)] * 2)
    for rounds, expected in ((2, 1), (3, 0)):
        attack = Arc(defence, norm=norm, eps=eps, seed=0, step=eps / 4, rounds=rounds)
        assert accuracy(defence, attack(images, labels), labels) == expected


def test_it_fools_a_member_from_which_the_mean_loss_leads_away():
    """The steeper member comes first and is out of reach.

    It has the larger gradient everywhere in the ball, in the opposite direction.
    """
    eps = 0.1
    images, labels = grey()
    defence = assemble([line(20.0, 0.11, towards=-1), line(0.4, 0.05, towards=1)])
    starts = [images + eps * (2 * uniform(seed + 1)[:1] - 1) for seed in range(5)]
    followed = [descend(defence, images, labels, eps, start) for start in [images, *starts]]
    assert all(accuracy(defence, points, labels) == 1 for points in followed)
    found = Arc(defence, norm="linf", eps=eps, seed=0)(images, labels)
    assert accuracy(defence, found, labels) == 0.5


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_heaviest_member_comes_first(order):
    recorded = []
    weights = []
    members = []
    recorders = []
    for index in order:
        weights.append((0.5, 0.3, 0.2)[index])
        members.append(constant())
        recorders.append(Recorder(members[-1], weights[-1], recorded))
    attack = Arc(
        assemble(members, weights=weights),
        norm="linf",
        eps=0.1,
        seed=0,
        rounds=2,
        stand_ins=recorders,
    )
    attack(uniform(4), torch.full((4,), 9))
    assert recorded == [0.5, 0.3, 0.2] * 2


def test_where_only_one_of_two_can_be_fooled_it_is_the_heavier():
    defence = assemble(
        [line(1.0, 0.05, towards=1), line(1.0, 0.05, towards=-1)], weights=[0.4, 0.6]
    )
    images, labels = grey()
    found = Arc(defence, norm="linf", eps=0.1, seed=0)(images, labels)
    assert wrong(defence.members(), found, labels)[:, 0].tolist() == [False, True]


@pytest.mark.parametrize(("runners_up", "expected"), [(1, 1.0), (4, 1.0), (5, 0.0), (9, 0.0)])
def test_only_the_given_number_of_runners_up_is_considered(runners_up, expected):
    """Only the last of six classes ever moves."""
    weight = torch.zeros(6, 64)
    weight[5] = 100 / 64
    bias = -torch.arange(6.0)
    bias[5] -= 50
    defence = assemble([Linear(weight, bias).requires_grad_(False)] * 2)
    images, labels = grey()
    found = Arc(defence, norm="linf", eps=0.06, seed=0, runners_up=runners_up)(images, labels)
    assert accuracy(defence, found, labels) == expected


def networks():
    return assemble([conv(), conv(7)], weights=[0.4, 0.6]).double()


def examples(n=12):
    images = uniform(n, shape=(3, 8, 8)).double()
    return images, networks().members()[0](images).argmax(dim=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("random_start", [False, True])
def test_candidates_stay_in_the_ball_and_the_box_and_are_never_worse_than_the_image(
    norm, random_start
):
    defence = networks().float()
    images, labels = examples(30)
    images = images.float().round(decimals=1)  # many pixels lie on the walls
    images[:10] = images[:10].round()
    eps = 0.1 if norm == "linf" else 0.7
    before = images.clone()
    found = Arc(defence, norm=norm, eps=eps, seed=0, rounds=5, random_start=random_start)(
        images, labels
    )
    assert torch.equal(images, before)
    assert inside(found, images, eps, Norm(norm)).all()
    assert (accuracy(defence, found, labels) <= accuracy(defence, images, labels)).all()
    assert (accuracy(defence, found, labels) < accuracy(defence, images, labels)).any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("random_start", [False, True])
def test_a_candidate_depends_on_its_own_image_and_the_seed_alone(norm, random_start):
    defence = networks()
    images, labels = examples()
    attack = Arc(defence, norm=norm, eps=0.03, seed=0, rounds=4, random_start=random_start)
    together = attack(images, labels)
    order = torch.tensor([7, 2, 2, 11, 0])
    assert torch.equal(attack(images, labels), together)
    torch.testing.assert_close(
        attack(images[order], labels[order]), together[order], rtol=0, atol=1e-9
    )
    other = Arc(defence, norm=norm, eps=0.03, seed=1, rounds=4, random_start=random_start)(
        images, labels
    )
    assert torch.equal(other, together) != random_start


def test_a_random_start_that_raises_the_accuracy_is_not_taken():
    """Both members are wrong on the image, and correct everywhere else."""
    defence = assemble([line(1.0, -1e-6, towards=1), line(1.0, -1e-6, towards=-1)])
    images, labels = grey()
    assert accuracy(defence, images, labels) == 0
    found = Arc(defence, norm="linf", eps=0.1, seed=0, random_start=True)(images, labels)
    assert torch.equal(found, images)


def test_an_image_that_all_members_misclassify_is_not_changed():
    defence = networks()
    images, _ = examples()
    predictions = torch.stack([member(images).argmax(dim=1) for member in defence.members()])
    labels = 9 - predictions.amax(dim=0)
    broken = wrong(defence.members(), images, labels).all(dim=0)
    found = Arc(defence, norm="linf", eps=0.1, seed=0)(images, labels)
    assert broken.any()
    assert torch.equal(found[broken], images[broken])


@pytest.mark.parametrize("member", [constant, detached])
@pytest.mark.parametrize("norm", NORMS)
def test_members_without_gradients_leave_the_image_as_it_is(member, norm):
    defence = assemble([member(), member()])
    images = uniform(4)
    labels = defence.members()[0](images).argmax(dim=1)
    assert torch.equal(Arc(defence, norm=norm, eps=0.1, seed=0)(images, labels), images)


def test_stand_ins_give_the_gradients_and_members_the_answers():
    members = [Masked(member, levels=64) for member in apart(2)]
    defence = assemble(members)
    images = uniform(60, 0.3, 0.7)
    labels = members[0](images).argmax(dim=1)
    attacks = defence.attacks()
    assert list(attacks) == ["arc", "arc-straight-through"]
    plain = attacks["arc"](defence, norm="linf", eps=0.03, seed=0)
    assert torch.equal(plain(images, labels), images)
    straight = attacks["arc-straight-through"](defence, norm="linf", eps=0.03, seed=0)
    after = accuracy(defence, straight(images, labels), labels)
    gained = accuracy(defence, images, labels) - after
    assert (gained >= 0).all()
    assert gained.mean() > 0.2


def test_only_a_randomized_ensemble_is_armed():
    """ARC with straight-through gradients needs members that all declare them."""
    plain = apart(2)
    fronts = [frontend.assemble([part], shape=SHAPE, depth=3, width=2) for part in plain]
    assert list(assemble(plain).attacks()) == ["arc"]
    assert list(assemble([fronts[0], plain[1]]).attacks()) == ["arc"]
    assert list(assemble(fronts).attacks()) == ["arc", "arc-straight-through"]
    assert not isinstance(assemble(plain, mode="logits"), Armed)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"norm": "l1"}, "expected linf or l2 for ARC, got l1: attack the surfaces"),
        ({"rounds": 0}, "expected rounds as a whole number of at least 1, got 0"),
        ({"runners_up": 0}, "expected runners_up as a whole number of at least 1, got 0"),
        ({"step": 0.0}, "expected step as a number above 0, got 0.0"),
    ],
)
def test_what_is_impossible_is_refused(arguments, expected):
    with pytest.raises(UsageError, match=expected):
        Arc(assemble(apart(2)), **{"norm": "linf", "eps": 0.1, "seed": 0, **arguments})
