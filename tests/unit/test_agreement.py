"""A form of a model is asked in its place only where it answers like it.

Habits of published code that tie a copy of a model to the original. Whatever the search asks must
say what the true model says, on images that neither has seen, with gradients.
"""

import functools
import types
import weakref

import pytest
import torch
from torch import nn
from torch.nn.modules import module as registry

from robustbench_kd.engine.passes.speedups import Speedups, search_model

CPU = torch.device("cpu")
LEVERS = {
    "fold": Speedups(fold=True),
    "channels-last": Speedups(channels_last=True),
    "bf16": Speedups("bf16", fold=True),
}


class Net(nn.Module):
    """A small network whose head reads what the subclass or a hook has kept."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 36, 4)
        self.norm.running_var.uniform_(0.2, 0.6)
        self.norm.running_mean.normal_(0, 0.2)
        self.kept = None
        self.eval().requires_grad_(False)

    def features(self, x):
        return self.norm(self.conv(x)).relu()

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


class Reads(Net):
    """Answers from what somebody has kept during the pass."""

    def forward(self, x):
        self.features(x)
        return self.head(self.kept.relu().flatten(1))


def plain():
    return Net()


def forward_hook():
    net = Reads()
    net.norm.register_forward_hook(lambda _part, _inputs, output: setattr(net, "kept", output))
    return net


def forward_pre_hook():
    net = Reads()
    net.norm.register_forward_pre_hook(lambda _part, inputs: setattr(net, "kept", inputs[0]))
    return net


def keyword_hook():
    net = Reads()

    def keep(_part, _args, _kwargs, output):
        net.kept = output

    net.norm.register_forward_hook(keep, with_kwargs=True)
    return net


def kept_in_a_list_for_one_part_alone():
    net, kept = Net(), [None]

    def keep(part, _inputs, output):
        if part is net.norm:
            kept[0] = output

    net.norm.register_forward_hook(keep)

    def forward(self, x):
        self.features(x)
        return self.head(kept[0].relu().flatten(1))

    net.forward = types.MethodType(forward, net)
    return net


def weak_reference():
    net = Reads()
    here = weakref.ref(net)
    net.norm.register_forward_hook(lambda _part, _inputs, output: setattr(here(), "kept", output))
    return net


class Beside(nn.Module):
    """Keeps what it sees in a part that lies outside of its tree."""

    def __init__(self, other):
        super().__init__()
        self.other = weakref.ref(other)

    def forward(self, x):
        self.other().kept = x
        return x


def part_outside_of_the_tree():
    net = Reads()
    net.norm = nn.Sequential(net.norm, Beside(net))
    return net


def stale_beside_fresh():
    """Nine parts of ten of the answer are right."""
    net = Net()
    net.norm.register_forward_hook(lambda _part, _inputs, output: setattr(net, "kept", output))
    net.forward = types.MethodType(
        lambda self, x: self.head((0.9 * self.features(x) + 0.1 * self.kept.relu()).flatten(1)), net
    )
    return net


def stale_only_with_gradients():
    net = Net()

    def keep(_part, _inputs, output):
        if torch.is_grad_enabled():
            net.kept = output

    def forward(self, x):
        features = self.features(x)
        if torch.is_grad_enabled():
            features = self.kept.relu()
        return self.head(features.flatten(1))

    net.norm.register_forward_hook(keep)
    net.forward = types.MethodType(forward, net)
    return net


def behind_a_masked_class():
    """A logit of -10,000 beside the others; the range of the others counts."""
    net = Reads()
    net.norm.register_forward_hook(lambda _part, _inputs, output: setattr(net, "kept", output))
    mask = torch.tensor([0.0, 0, 0, -1e4])
    net.register_forward_hook(lambda _part, _inputs, output: output + mask)
    return net


def infinite_logits():
    net = Net()
    net.head.register_forward_hook(
        lambda _part, _inputs, output: output.masked_fill(torch.arange(4) == 3, -torch.inf)
    )
    return net


def forward_of_the_original():
    net = Net()
    old = net.forward
    net.forward = lambda x: old(x) + 0
    return net


def partial_of_the_original():
    net = Reads()
    net.features = functools.partial(Net.features, net)
    net.norm.register_forward_hook(lambda _part, _inputs, output: setattr(net, "kept", output))
    return net


def copies_as_itself():
    net = Net()

    class Single(nn.Sequential):
        def __deepcopy__(self, _memo):
            return self

    net.norm = Single(nn.Identity(), nn.Conv2d(6, 6, 1), net.norm)
    return net.eval().requires_grad_(False)


def backward_hook_on_a_norm():
    net = Net()
    net.norm.register_full_backward_hook(lambda _part, inputs, _outputs: (-inputs[0],))
    return net


def backward_pre_hook_on_a_norm():
    net = Net()
    net.norm.register_full_backward_pre_hook(lambda _part, outputs: (0 * outputs[0],))
    return net


def gradient_hook_on_the_output_of_a_norm():
    net = Net()

    def double(_part, _inputs, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: 3 * gradient.relu())

    net.norm.register_forward_hook(double)
    return net


def detaching_norm():
    net = Net()
    net.norm.register_forward_hook(lambda _part, _inputs, output: output.detach())
    return net


def own_forward_of_a_norm():
    net = Net()
    net.norm.forward = lambda x: nn.BatchNorm2d.forward(net.norm, x).clamp(max=0.3)
    return net


def writes_into_its_argument():
    net = Net()
    net.register_forward_pre_hook(lambda _part, inputs: (inputs[0].mul_(0.5),))
    return net


def buffer_of_two_parts():
    net = Reads()
    net.register_buffer("seen", torch.zeros(8, 6, 6, 6))
    net.norm.register_buffer("seen", net.seen)

    def keep(part, _inputs, output):
        net.seen[: len(output)] = output.detach()

    def forward(self, x):
        self.features(x)
        return self.head(self.seen[: len(x)].flatten(1)) + self.head(self.features(x).flatten(1))

    net.norm.register_forward_hook(keep)
    net.forward = types.MethodType(forward, net)
    return net


HABITS = [
    plain,
    forward_hook,
    forward_pre_hook,
    keyword_hook,
    kept_in_a_list_for_one_part_alone,
    weak_reference,
    part_outside_of_the_tree,
    stale_beside_fresh,
    stale_only_with_gradients,
    behind_a_masked_class,
    infinite_logits,
    forward_of_the_original,
    partial_of_the_original,
    copies_as_itself,
    backward_hook_on_a_norm,
    backward_pre_hook_on_a_norm,
    gradient_hook_on_the_output_of_a_norm,
    detaching_norm,
    own_forward_of_a_norm,
    writes_into_its_argument,
    buffer_of_two_parts,
]


def images(n, seed=1):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def logits_of(ask, points):
    with torch.no_grad():
        return ask(points.clone())


def gradient_of(ask, points):
    points = points.clone().requires_grad_()
    logits = ask(points.clone())
    if not logits.requires_grad:
        return None
    mixture = torch.tensor([1.0, -2, 0.5, 0])
    return torch.autograd.grad((logits * mixture).nan_to_num(0).sum(), points)[0]


def assert_like(ask, model, tolerance):
    """The search asks about new points between two questions of the judge about others."""
    for n, seed in ((6, 2), (3, 3), (6, 4)):
        logits_of(model, images(n, seed + 10))
        found, gradient = logits_of(ask, images(n, seed)), gradient_of(ask, images(n, seed))
        true = logits_of(model, images(n, seed))
        assert torch.allclose(found[:, :3], true[:, :3], atol=tolerance)

        logits_of(model, images(n, seed + 10))
        gradient = gradient_of(ask, images(n, seed))
        slope = gradient_of(model, images(n, seed))
        assert (gradient is None) == (slope is None)
        if slope is not None:
            assert (gradient - slope).norm() <= 10 * tolerance * slope.norm()


@pytest.mark.parametrize("speedups", LEVERS.values(), ids=LEVERS)
@pytest.mark.parametrize("habit", HABITS)
def test_the_search_asks_what_answers_like_the_model(habit, speedups):
    model = habit()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model(images(4))
    asked = search_model(model, CPU, speedups, size=4, probe=images(4))
    assert_like(asked, model, 0.02 if speedups.precision == "bf16" else 1e-4)
    for name, value in model.state_dict().items():
        assert name.endswith("seen") or torch.equal(value, state[name]), name


@pytest.mark.parametrize("speedups", LEVERS.values(), ids=LEVERS)
def test_global_hooks_that_know_the_original_alone(speedups):
    net = Reads()

    def keep(part, _inputs, output):
        if part is net.norm:
            net.kept = output

    handle = registry.register_module_forward_hook(keep)
    try:
        net(images(4))
        asked = search_model(net, CPU, speedups, size=4, probe=images(4))
        assert_like(asked, net, 1e-4)
    finally:
        handle.remove()


@pytest.mark.parametrize("speedups", LEVERS.values(), ids=LEVERS)
def test_global_backward_hooks(speedups):
    net = Net()

    def turn(part, inputs, _outputs):
        return (-inputs[0],) if isinstance(part, nn.BatchNorm2d) else None

    handle = registry.register_module_full_backward_hook(turn)
    try:
        asked = search_model(net, CPU, speedups, size=4, probe=images(4))
        assert_like(asked, net, 0.02)
    finally:
        handle.remove()


def test_what_a_stale_copy_would_do_is_said():
    model = forward_hook()
    model(images(4))
    asked = search_model(model, CPU, Speedups(fold=True), size=4, probe=images(4))
    assert [note.partition(" was left out")[0] for note in asked.notes] == [
        "fold",
        "input-convolution",
    ]


def test_plain_networks_keep_all_levers():
    for speedups in LEVERS.values():
        assert search_model(plain(), CPU, speedups, size=4, probe=images(1)).notes == []


def test_a_norm_with_a_hook_stays_and_the_others_are_folded():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 2, 3),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )
    model.eval().requires_grad_(False)
    calls = []
    model[3].register_forward_hook(lambda part, _inputs, _output: calls.append(type(part)))
    asked = search_model(model, CPU, Speedups(fold=True), size=4, probe=images(2))
    calls.clear()
    asked(images(2))
    assert (calls, asked.notes) == ([nn.BatchNorm2d], [])
