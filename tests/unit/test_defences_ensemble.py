"""Ensembles: which member answers, exact expectations, and the surfaces of all members."""

import math

import pytest
import torch
from oracles import Linear
from torch import nn

from robustbench_kd.core.errors import UsageError
from robustbench_kd.defences import frontend
from robustbench_kd.defences.ensemble import assemble
from robustbench_kd.tensors.defence import Key, Mixture, Randomized

SHAPE = (1, 8, 8)


class Watched(nn.Module):
    """Gives every image the same logits and keeps the images of all calls."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)
        self.batches = []

    def forward(self, images):
        self.batches.append(images)
        return self.logits.expand(len(images), -1)


def constants(count):
    return [Watched([float(index), -1.0]) for index in range(count)]


def network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Linear(torch.randn(3, 64, generator=generator), torch.zeros(3)).eval()


def images(n=6):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))


def key_of(n, draw=0):
    return Key(0, "test", ids=torch.arange(n), draw=torch.full((n,), draw))


def members_of(logits):
    return logits[:, 0].long()


def surfaces(defence):
    return {surface.name: surface for surface in defence.surfaces()}


def front_end(part, seed):
    torch.manual_seed(seed)
    defence = frontend.assemble([part], shape=SHAPE, depth=5, width=3, amplitude=0.1).eval()
    defence.fit(images(), torch.zeros(6), images(), torch.zeros(6))
    return defence


@pytest.mark.parametrize("weights", [[], [0.7, 0.2, 0.1]])
def test_members_answer_as_often_as_they_weigh(weights):
    n = 4000
    defence = assemble(constants(3), weights=weights)
    chosen = members_of(defence.draw(torch.zeros(n, *SHAPE), key_of(n)))
    for index, weight in enumerate(weights or [1 / 3] * 3):
        noise = math.sqrt(weight * (1 - weight) / n)
        assert (chosen == index).float().mean().item() == pytest.approx(weight, abs=4 * noise)


def test_a_member_gets_its_own_rows_alone_and_rows_keep_their_order():
    parts = constants(4)
    shown = images(50)
    chosen = members_of(assemble(parts).draw(shown, key_of(50)))
    for index, part in enumerate(parts):
        assert torch.equal(torch.cat(part.batches), shown[chosen == index])


def test_a_member_that_was_not_drawn_is_not_asked():
    parts = constants(5)
    assemble(parts).draw(images(1), key_of(1))
    assert sum(len(part.batches) for part in parts) == 1


def test_one_member_answers_a_whole_batch_drawn_by_its_first_row():
    alone = assemble(constants(3))
    together = assemble(constants(3), per="batch")
    blank = torch.zeros(30, *SHAPE)
    by_image = members_of(alone.draw(blank, key_of(30)))
    answered = set()
    for seed in range(20):
        rows = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
        by_batch = members_of(together.draw(blank, key_of(30).take(rows)))
        assert (by_batch == by_image[rows[0]]).all()
        answered.add(int(by_batch[0]))
    assert len(answered) == 3


def test_a_randomized_ensemble_shows_its_members_and_weights():
    parts = [network(0), network(1)]
    defence = assemble(parts, weights=[0.25, 0.75])
    assert isinstance(defence, Randomized)
    assert isinstance(defence, Mixture)
    assert list(defence.members()) == parts
    assert defence.weights.tolist() == [0.25, 0.75]
    assert [name for name in defence.state_dict() if not name.startswith("parts.")] == []


def test_an_averaged_ensemble_offers_no_draw_and_no_members():
    defence = assemble([network(0), network(1)], mode="logits")
    assert not isinstance(defence, Randomized)
    assert not isinstance(defence, Mixture)


def test_logits_are_averaged_by_weight():
    parts = [network(0), network(1)]
    defence = assemble(parts, mode="logits", weights=[0.2, 0.8])
    torch.testing.assert_close(
        defence(images()), 0.2 * parts[0](images()) + 0.8 * parts[1](images())
    )


def test_probabilities_are_averaged_by_weight():
    parts = [network(0), network(1)]
    defence = assemble(parts, mode="probabilities", weights=[0.2, 0.8])
    mean = 0.2 * parts[0](images()).softmax(dim=1) + 0.8 * parts[1](images()).softmax(dim=1)
    torch.testing.assert_close(defence(images()).exp(), mean)


def test_the_mean_of_certain_members_is_finite():
    defence = assemble(
        [Watched([500.0, 0.0, 0.0]), Watched([0.0, 500.0, 0.0])], mode="probabilities"
    )
    logits = defence(images(1))[0]
    torch.testing.assert_close(logits, torch.tensor([math.log(0.5), math.log(0.5), -500.0]))


def test_expected_stacks_the_members_and_weighs_them():
    parts = [network(0), network(1)]
    found = surfaces(assemble(parts, weights=[0.25, 0.75]))
    assert list(found) == ["member-0", "member-1", "expected"]
    expected = found["expected"]
    assert torch.equal(
        expected.answer(images(), key_of(6)), torch.stack([part(images()) for part in parts])
    )
    assert expected.weights.tolist() == [0.25, 0.75]
    assert (expected.passes, expected.same_outputs) == (2, True)
    assert torch.equal(found["member-1"].answer(images(), key_of(6)), parts[1](images()))
    assert not found["member-1"].same_outputs


@pytest.mark.parametrize("mode", ["randomized", "logits", "probabilities"])
def test_a_backbone_of_all_members_is_given_once(mode):
    shared = network()
    found = surfaces(assemble([front_end(shared, seed) for seed in range(3)], mode=mode))
    assert "expected-backbone" not in found
    assert (found["backbone"].passes, found["backbone"].weights) == (1, None)
    assert torch.equal(found["backbone"].answer(images(), key_of(6)), shared(images()))


def test_the_weights_of_members_with_one_backbone_are_added():
    one = network(0)
    two = network(1)
    members = [front_end(one, 0), front_end(two, 1), front_end(one, 2)]
    backbone = surfaces(assemble(members, weights=[0.2, 0.3, 0.5]))["expected-backbone"]
    assert torch.equal(
        backbone.answer(images(), key_of(6)), torch.stack([one(images()), two(images())])
    )
    torch.testing.assert_close(backbone.weights, torch.tensor([0.7, 0.3]))
    assert backbone.passes == 2


def test_surfaces_that_all_members_declare_are_stacked():
    members = [front_end(network(0), 0), front_end(network(1), 1)]
    defence = assemble(members)
    found = surfaces(defence)
    assert list(found) == [
        "member-0",
        "member-1",
        "expected-backbone",
        "expected-straight-through",
        "expected-damped-0.03",
        "expected-damped-0.1",
        "expected",
    ]
    straight = found["expected-straight-through"]
    points = images().requires_grad_()
    answers = straight.answer(points, key_of(6))
    assert torch.equal(answers, torch.stack([member(points) for member in members]))
    (gradient,) = torch.autograd.grad(answers.sum(), points, retain_graph=True)
    expected = torch.zeros_like(points)
    for member in members:
        own = surfaces(member)["straight-through"].answer(points, key_of(6))
        expected = expected + torch.autograd.grad(own.sum(), points)[0]
    torch.testing.assert_close(gradient, expected)
    assert straight.same_outputs
    assert not found["expected-backbone"].same_outputs


@pytest.mark.parametrize("mode", ["logits", "probabilities"])
def test_an_averaged_ensemble_combines_surfaces_by_its_rule(mode):
    members = [front_end(network(0), 0), front_end(network(1), 1)]
    defence = assemble(members, mode=mode, weights=[0.4, 0.6])
    found = surfaces(defence)
    assert list(found) == [
        "member-0",
        "member-1",
        "backbone",
        "straight-through",
        "damped-0.03",
        "damped-0.1",
    ]
    assert torch.equal(found["straight-through"].answer(images(), key_of(6)), defence(images()))
    assert found["straight-through"].same_outputs
    bare = assemble([member.part for member in members], mode=mode, weights=[0.4, 0.6])
    torch.testing.assert_close(found["backbone"].answer(images(), key_of(6)), bare(images()))
    assert (found["backbone"].weights, found["backbone"].passes) == (None, 2)


def test_surfaces_that_one_member_does_not_declare_are_left_out():
    found = surfaces(assemble([front_end(network(0), 0), network(1)]))
    assert list(found) == ["member-0", "member-1", "expected"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"mode": "randomised"},
            "unknown mode of an ensemble 'randomised': did you mean 'randomized'",
        ),
        ({"per": "row"}, "unknown unit of an ensemble's draw 'row'"),
        ({"weights": [0.5, 0.4]}, r"expected 2 weights above 0 that sum to 1, .* got \[0.5, 0.4\]"),
        ({"weights": [1.0]}, r"expected 2 weights .* got \[1.0\]"),
        ({"weights": [1.0, 0.0]}, "expected 2 weights above 0"),
        (
            {"weights": [1.5, -0.5]},
            r"expected each weight of an ensemble as a number in \[0, 1\], got 1.5",
        ),
        ({"weights": ["a", "b"]}, "got 'a'"),
    ],
)
def test_impossible_arguments_are_refused(arguments, expected):
    with pytest.raises(UsageError, match=expected):
        assemble(constants(2), **arguments)


def test_weights_may_be_rounded():
    assemble(constants(3), weights=[0.3333333, 0.3333333, 0.3333333])


def test_one_member_is_no_ensemble():
    with pytest.raises(
        UsageError, match="expected at least two parts for the family 'ensemble', got 1"
    ):
        assemble(constants(1))
