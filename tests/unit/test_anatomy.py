"""What masks a gradient is found and bridged, whatever a person has written, without a word."""

import pytest
import torch
from broken import CHECKPOINTS, Through, digits
from maskings import MASKINGS, DeepFront, MeanSparse, Nearest, Noisy, Vote, everywhere
from torch import nn
from torch.nn import functional

from robustbench_kd.core.records import Severity
from robustbench_kd.core.threat import Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.anatomy.candidates import candidates, read
from robustbench_kd.engine.anatomy.recording import record
from robustbench_kd.engine.anatomy.rewired_answer import RewiredAnswer
from robustbench_kd.engine.anatomy.rewiring import Wiring
from robustbench_kd.engine.probing.anatomy import examine, findings
from robustbench_kd.tensors.defence import Surface
from robustbench_kd.tensors.oracle import Oracle

CPU = torch.device("cpu")
THREAT = Threat.parse("linf:0.2")
NETWORK = "teacher"
# Own gradients that lead to the image: nothing has to be found.
OPEN = {"median filter", "sparsifier", "logits x 10,000", "logits x 0.0000001"}
WINNERS = "k winners take all"
SLACK = 5  # tries of 46: other activations, and a purifier, make another network


@pytest.fixture(scope="module")
def data():
    return open_dataset("digits").take(torch.arange(60))


@pytest.fixture(scope="module")
def train():
    return open_dataset("digits", split="train").take(torch.arange(300))


def looked_at(model, data):
    return examine(Oracle(model.eval(), CPU), data, THREAT, seed=0)


@pytest.fixture(scope="module")
def inside(data):
    """How many tries a short attack breaks on the network itself."""
    anatomy = looked_at(MASKINGS["input detached"](digits(NETWORK)), data)
    return anatomy.found[0].broken


def made(name, train):
    builders = {
        "vote of three": lambda net: Vote([net, digits("plain"), digits("small")]),
        "nearest stored example": lambda net: Nearest(net, train.images, train.labels),
        "deep front end": lambda net: DeepFront(net, train.images),
        "deep front end without modules": lambda net: DeepFront(net, train.images, bare=True),
    }
    return {**MASKINGS, **builders}[name](digits(NETWORK))


OTHERS = [
    "vote of three",
    "nearest stored example",
    "deep front end",
    "deep front end without modules",
]


@pytest.mark.parametrize("name", [*sorted(set(MASKINGS) - OPEN - {WINNERS}), *OTHERS])
def test_a_surface_is_found_that_breaks_what_the_network_inside_does(name, inside, data, train):
    anatomy = looked_at(made(name, train), data)
    assert anatomy.own.broken < inside / 2 or anatomy.own.gain < 0.2
    assert anatomy.found[0].broken >= inside - SLACK
    assert anatomy.found[0].surface.name.startswith("found-")


@pytest.mark.parametrize("name", sorted(OPEN))
def test_nothing_is_offered_where_own_gradients_do_as_well(name, data, train):
    assert looked_at(made(name, train), data).found == ()


def test_distances_are_offered_where_they_decide_other_than_the_first_logits(data, train):
    stored = train.take(torch.arange(300))
    anatomy = looked_at(Nearest(digits(NETWORK), stored.images, stored.labels), data)
    assert "found-deciding-logits" in [one.surface.name for one in anatomy.found]


def test_a_sparsifier_in_all_layers_is_gone_past(data, train):
    anatomy = looked_at(everywhere(MeanSparse, digits(NETWORK), train.images[:400]), data)
    assert anatomy.found[0].broken > anatomy.own.broken


def test_other_gradients_that_do_no_better_are_not_offered(inside, data, train):
    anatomy = looked_at(made(WINNERS, train), data)
    assert anatomy.own.broken >= inside - SLACK
    assert anatomy.found == ()


def test_a_clamp_that_ends_gradients_at_black_and_white_is_gone_past(data):
    ends = torch.zeros(1, requires_grad=True)
    ends.clamp(0, 1).backward()
    if ends.grad:
        pytest.skip("this version of torch gives a clamp a gradient at its bounds")

    clamped = Through(digits("small"), lambda images: images.clamp(0, 1)).eval()
    anatomy = looked_at(clamped, data)
    assert [one.surface.name for one in anatomy.found] == ["found-repaired"]
    assert anatomy.parts[0].what == "clamp ends or changes the gradient"


@pytest.mark.parametrize("name", ["teacher", "plain", "small", "involution", "rslad-0"])
def test_an_honest_network_has_no_other_gradients(name, data):
    anatomy = looked_at(digits(name), data)
    assert anatomy.own is None
    assert anatomy.found == ()
    assert anatomy.passes <= 8 * 24
    assert (CHECKPOINTS / f"digits-{name}.toml").exists()


@pytest.mark.parametrize("name", [*MASKINGS, *OTHERS])
def test_a_rewired_pass_answers_what_the_model_answers(name, data, train):
    model = made(name, train).eval()
    images = data.images[:7]
    expected = model(images).detach()
    before = torch.get_rng_state()
    points = images.clone().requires_grad_()
    answered = RewiredAnswer(model, Wiring())(points)
    assert torch.equal(answered.detach(), expected)
    assert torch.equal(images, data.images[:7])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


def test_torch_is_as_before_after_a_pass_that_fails(data):
    class Failing(nn.Module):
        def forward(self, images):
            if images.requires_grad:
                raise ValueError("no gradients here")
            return images.flatten(1)[:, :10]

    from_numpy = torch.from_numpy
    apply = torch.autograd.Function.apply
    points = data.images[:3].clone().requires_grad_()
    answered = RewiredAnswer(Failing(), Wiring())(points)
    (gradient,) = torch.autograd.grad(answered.sum(), points)
    assert torch.equal(answered.detach(), points.detach().flatten(1)[:, :10])
    assert not gradient.any()
    assert torch.from_numpy is from_numpy
    assert torch.autograd.Function.apply == apply
    assert torch.is_grad_enabled()


def test_names_of_surfaces_differ(data, train):
    model = made("vote of three", train).eval()
    names = [name for name, _ in candidates(model, read(model, record(model, data.images[:8])))]
    assert len(names) == len(set(names)) > 2


def test_a_tree_of_places_names_module_line_and_what_happens(data):
    model = nn.Sequential(nn.Identity(), MASKINGS["input rounded"](digits(NETWORK)))
    anatomy = looked_at(model, data)
    (rounds,) = [part for part in anatomy.parts if part.what.startswith("round")]
    assert rounds.module == "1"
    assert "maskings.py:" in rounds.line


def test_a_defence_that_declares_its_surfaces_is_taken_at_its_word(data):
    class Declared(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = digits(NETWORK)

        def forward(self, images):
            return self.network(images.round())

        def surfaces(self):
            return [Surface(name="inside", answer=lambda images, _key: self.network(images))]

    assert looked_at(Declared(), data).passes == 0


def test_findings_say_what_a_surface_gains(data):
    masked_by, found = findings(looked_at(MASKINGS["input detached"](digits(NETWORK)), data))
    assert "detach ends or changes the gradient" in masked_by.message
    assert (found.check, found.severity) == ("surface-found", Severity.INFO)
    assert "found-repaired" in found.message


def test_a_network_of_the_functional_kind_needs_no_module(data):
    network = digits(NETWORK)

    class Functional(nn.Module):
        """No submodule, so that no hook fires within."""

        def __init__(self):
            super().__init__()
            self.__dict__["inner"] = network

        def forward(self, images):
            return self.inner((images * 15).floor() / 15)

    anatomy = looked_at(Functional(), data)
    assert anatomy.found[0].broken > 5 * max(1, anatomy.own.broken)


def test_chance_that_is_not_wrapped_gives_no_wrong_answer(data):
    """A rewired pass draws anew, like any other."""
    torch.manual_seed(0)
    expected = Noisy(digits(NETWORK))(data.images[:4])
    torch.manual_seed(0)
    points = data.images[:4].clone().requires_grad_()
    assert torch.equal(RewiredAnswer(Noisy(digits(NETWORK)), Wiring())(points), expected)


def test_a_network_in_numpy_is_differentiated_as_torch_would(data):
    weights = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    plain = nn.Sequential(nn.Flatten())

    class InNumpy(nn.Module):
        def forward(self, images):
            import numpy as np  # as scripts do

            features = np.maximum(images.detach().numpy().reshape(len(images), -1), 0.3)
            logits = np.tanh(features @ weights.numpy())
            return torch.from_numpy(logits / np.linalg.norm(logits, axis=1, keepdims=True))

    def expected(images):
        logits = torch.tanh(plain(images).clamp(min=0.3) @ weights)
        return functional.normalize(logits, dim=1)

    points = data.images[:5].clone().requires_grad_()
    found = RewiredAnswer(InNumpy(), Wiring())(points)
    (gradient,) = torch.autograd.grad(found[:, 3].sum(), points)
    (true,) = torch.autograd.grad(expected(points)[:, 3].sum(), points)
    assert torch.allclose(gradient, true, atol=1e-5)


class Attending(nn.Module):
    """Attention to the six largest of ten scores, as `-inf` for the others."""

    def __init__(self):
        super().__init__()
        self.network = digits(NETWORK)

    def forward(self, images):
        scores = self.network(images)
        least = scores.topk(6, dim=1).values[:, -1:]
        return scores.masked_fill(scores < least, -torch.inf).softmax(dim=1) * 10


class Gated(nn.Module):
    """ReLU, as some write it."""

    def forward(self, features):
        return features * (features > 0)


class Averaging(nn.Module):
    """Keeps a running mean, a cache by shape and a list, all without a graph of their own."""

    def __init__(self):
        super().__init__()
        self.network = digits(NETWORK)
        self.register_buffer("mean", torch.zeros(()))
        self.cache = {}
        self.seen = []

    def forward(self, images):
        self.mean.mul_(0.9).add_(0.1 * images.detach().mean())
        if images.shape not in self.cache:
            self.cache[images.shape] = images.detach().round() * 0
        self.seen.append(images.detach().mean())
        return self.network((images * 15).round() / 15 + self.cache[images.shape])


def test_infinite_logits_within_stay_out_of_the_answer(data):
    model = Attending().eval()
    points = data.images[:5].clone().requires_grad_()
    answered = RewiredAnswer(model, Wiring())(points)
    assert torch.equal(answered.detach(), model(points).detach())


def test_a_model_keeps_no_graph_of_a_watched_pass(data):
    model = Averaging().eval()
    assert looked_at(model, data).found
    kept = [model.mean, *model.cache.values(), *model.seen]
    assert not any(tensor.requires_grad for tensor in kept)


@pytest.mark.parametrize("scale", [1, 1e-9, 1e-12])
def test_tiny_logits_of_an_honest_network_are_no_masking(scale, data):
    network = digits(NETWORK)

    class Scaled(nn.Module):
        def forward(self, images):
            return scale * network(images)

    assert looked_at(Scaled(), data).found == ()


def test_gates_of_an_honest_network_are_no_masking(data):
    network = digits(NETWORK)
    for name, part in list(network.named_modules()):
        if isinstance(part, nn.ReLU):
            network.set_submodule(name, Gated())
    assert looked_at(network, data).found == ()


def test_a_function_that_is_mapped_over_images_is_left_alone(data):
    network = digits(NETWORK)

    class Mapped(nn.Module):
        def forward(self, images):
            return torch.vmap(lambda image: network(image[None])[0])(images)

    assert looked_at(Mapped(), data).found == ()


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_logits_of_another_precision_are_taken(kind, data):
    network = digits(NETWORK)

    class Precise(nn.Module):
        def forward(self, images):
            return functional.one_hot(network(images).to(kind).argmax(dim=1), 10).to(kind)

    oracle = Oracle(Precise().eval(), CPU)
    assert examine(oracle, data, THREAT, seed=0).found


def test_a_defence_that_cannot_be_watched_is_evaluated_all_the_same(data, monkeypatch):
    def fail(*_arguments):
        raise RuntimeError("no such pass")

    monkeypatch.setattr("robustbench_kd.engine.probing.anatomy.record", fail)
    anatomy = looked_at(digits(NETWORK), data)
    (found,) = findings(anatomy)
    assert (anatomy.surfaces, found.check) == ([], "look-failed")
    assert "no such pass" in found.message
