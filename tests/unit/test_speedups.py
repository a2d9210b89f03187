"""Speed levers.

What the search asks says what the true model says, and the true model stays as it is.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.engine.passes.speedups import Speedups, reduced_precision, search_model
from robustbench_kd.models import (
    cifar_resnet,
    mobilenet_v2,
    preact_resnet,
    resnet,
    small_cnn,
    wide_resnet,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MODELS = {
    "small_cnn": lambda: small_cnn.build(width=4),
    "cifar_resnet": lambda: cifar_resnet.build(depth=8, width=4),
    "resnet": lambda: resnet.build(width=4),
    "preact_resnet": lambda: preact_resnet.build(width=4),
    "wide_resnet": lambda: wide_resnet.build(depth=10, width=1),
    "mobilenet_v2": mobilenet_v2.build,
}


def lived_in(model):
    """A model whose batch statistics are no longer those it was made with."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.3, 3)
            if part.affine:
                part.weight.data.uniform_(0.5, 1.5)
                part.bias.data.normal_(0, 0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def small(**changes):
    return lived_in(small_cnn.build(channels=1, size=8, width=4, **changes))


def images(n=6, shape=(1, 8, 8)):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def search(model, speedups, *, size=4, probe=None, device=CPU):
    return search_model(
        model, device, speedups, size=size, probe=images(2) if probe is None else probe
    )


def answers(ask, points):
    """Logits, and a gradient that every logit has a part in."""
    points = points.clone().requires_grad_()
    logits = ask(points)
    (gradient,) = torch.autograd.grad(
        (logits @ torch.linspace(-1, 1, logits.shape[1])).sum(), points
    )
    return logits.detach(), gradient


def assert_same(ask, model, points, tolerance=1e-4):
    for found, true in zip(answers(ask, points), answers(model, points), strict=True):
        assert (found - true).abs().max() <= tolerance * true.abs().max()


def norms_left(asked):
    """Normalisations that a call still runs through."""
    seen = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda part, *_: (
            seen.append(part) if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) else None
        )
    )
    asked(images(2))
    hook.remove()
    return len(seen)


class Branching(nn.Module):
    """Cannot be traced: its path depends on the pixels."""

    def __init__(self):
        super().__init__()
        self.known = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.loose, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.head = nn.Linear(48, 4)

    def forward(self, x):
        x = self.known(x)
        x = self.norm(self.loose(x)) if x.sum() > -1e9 else x
        return self.head(x.flatten(1))


class Twice(nn.Module):
    """What the convolution says is used twice, and so is the second normalisation."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.second, self.shared = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.head = nn.Linear(128, 4)

    def forward(self, x):
        x = self.first(x)
        x = x + self.norm(x)
        x = self.shared(self.second(x)) + self.shared(x)
        return self.head(x.flatten(1))


class Peeking(nn.Module):
    """Uses the weights of a layer for something else, which folding cannot know."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(72, 4)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).flatten(1)) + self.conv.weight.sum()


class Viewing(nn.Module):
    """Relies on the usual layout, as many networks do before their linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(72, 4)

    def forward(self, x):
        return self.head(self.conv(x).view(len(x), -1))


@pytest.mark.parametrize(
    ("speedups", "label"),
    [
        (Speedups(), "fp32"),
        (Speedups(fold=True), "fp32+fold"),
        (Speedups("bf16", fold=True, compile=True), "bf16+fold+compile"),
        (Speedups("tf32", channels_last=True), "tf32+channels-last"),
    ],
)
def test_the_label_names_the_precision_and_the_levers(speedups, label):
    assert speedups.label == label


def test_an_unknown_precision_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean 'bf16'"):
        Speedups("bf-16")


def test_without_levers_the_model_itself_is_asked():
    model = small()
    asked = search(model, Speedups())
    assert torch.equal(asked(images()), model(images()))
    assert asked.notes == []


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_folded_model_agrees_in_logits_and_gradients(build):
    model, points = lived_in(build()), images(2, (3, 32, 32))
    asked = search(model, Speedups(fold=True), probe=points)
    assert_same(asked, model, points)
    assert not any("left out" in note for note in asked.notes)


def test_a_plain_sequence_keeps_no_normalisation():
    model = small()
    asked = search(model, Speedups(fold=True))
    assert (norms_left(model), norms_left(asked), asked.notes) == (3, 0, [])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_take_in_their_normalisation_too(affine, bias):
    model = lived_in(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 9, bias=bias),
            nn.BatchNorm1d(9, affine=affine),
            nn.Linear(9, 4),
        )
    )
    asked = search(model, Speedups(fold=True))
    assert norms_left(asked) == 0
    assert_same(asked, model, images())


@pytest.mark.parametrize(
    "speedups", [Speedups(fold=True), Speedups("bf16", fold=True, channels_last=True)]
)
def test_the_true_model_keeps_its_weights_layers_layout_and_mode(speedups):
    model = lived_in(Branching())
    before = copy.deepcopy(model)
    search(model, speedups)(images())
    for (name, tensor), (_, old) in zip(
        model.state_dict().items(), before.state_dict().items(), strict=True
    ):
        assert torch.equal(tensor, old), name
        assert tensor.stride() == old.stride(), name
    kinds = [[(type(part), part.training) for part in one.modules()] for one in (model, before)]
    assert kinds[0] == kinds[1]


def test_of_what_cannot_be_traced_only_sequences_are_folded():
    model = lived_in(Branching())
    asked = search(model, Speedups(fold=True))
    assert norms_left(asked) == 1
    assert_same(asked, model, images())


def test_what_is_used_twice_is_not_folded():
    model = lived_in(Twice())
    asked = search(model, Speedups(fold=True))
    assert norms_left(asked) == 3  # calls of two of them
    assert_same(asked, model, images())


def test_folding_that_changes_the_answers_is_left_out():
    model = lived_in(Peeking())
    asked = search(model, Speedups(fold=True))
    assert "fold was left out of the search: logits changed by" in asked.notes[0]
    assert torch.equal(asked(images()), model(images()))


def test_a_model_that_cannot_be_copied_is_asked_as_it_is():
    model = small()
    model.handle = (line for line in "generators cannot be copied")
    asked = search(model, Speedups(fold=True, channels_last=True))
    assert [note.partition(" ")[0] for note in asked.notes] == ["fold", "channels-last"]
    assert_same(asked, model, images())


def test_channels_last_gives_the_same_and_gradients_in_the_usual_layout():
    model = lived_in(cifar_resnet.build(depth=8, width=4))
    points = images(3, (3, 16, 16))
    asked = search(model, Speedups(channels_last=True), probe=points)
    assert asked.notes == []
    assert_same(asked, model, points)
    assert answers(asked, points)[1].is_contiguous()


def test_channels_last_reaches_the_layers():
    class Watching(nn.Conv2d):
        def forward(self, x):
            seen.append((x.is_contiguous(memory_format=torch.channels_last), x.is_contiguous()))
            return super().forward(x)

    seen = []
    model = nn.Sequential(Watching(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval()
    search(model, Speedups(channels_last=True), probe=images(2, (3, 8, 8)))(images(2, (3, 8, 8)))
    assert seen[-1] == (True, False)


def test_channels_last_is_left_out_where_a_model_relies_on_the_usual_layout():
    model = lived_in(Viewing())
    asked = search(model, Speedups(channels_last=True))
    assert "channels-last was left out of the search: view size is not compatible" in asked.notes[0]
    assert torch.equal(asked(images()), model(images()))


@pytest.fixture
def switches():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    yield backends
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


def positions(switches):
    return [switch.allow_tf32 for switch in switches]


@pytest.mark.parametrize("before", [[False, False], [True, False]])
def test_tf32_is_allowed_inside_alone_even_where_a_pass_raises(switches, before):
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value
    inside = []

    def raising():
        inside.extend(positions(switches))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), reduced_precision(Speedups("tf32"), CUDA):
        raising()
    assert (inside, positions(switches)) == ([True, True], before)


@pytest.mark.parametrize(("precision", "device"), [("tf32", CPU), ("fp32", CUDA), ("bf16", CUDA)])
def test_tf32_is_switched_for_tf32_on_a_gpu_only(switches, precision, device):
    for switch in switches:
        switch.allow_tf32 = False
    with reduced_precision(Speedups(precision), device):
        assert positions(switches) == [False, False]


def test_tf32_without_a_gpu_is_said_to_be_fp32():
    assert search(small(), Speedups("tf32")).notes == [
        "tf32 needs a CUDA device: the search runs in fp32"
    ]


def test_bf16_computes_in_bf16_and_answers_in_float32():
    model, inside = small(), []
    model[0].register_forward_hook(lambda _part, _inputs, output: inside.append(output.dtype))
    asked = search(model, Speedups("bf16"))
    inside.clear()
    logits, gradient = answers(asked, images())
    assert inside == [torch.bfloat16]
    assert (logits.dtype, gradient.dtype) == (torch.float32, torch.float32)
    assert asked.notes == []
    true, slope = answers(model, images())
    assert 0 < (logits - true).abs().max() < 0.02 * true.abs().max()
    assert functional.cosine_similarity(gradient.flatten(1), slope.flatten(1)).min() > 0.9


def test_logits_of_bf16_are_finer_than_bf16():
    logits = search(small(), Speedups("bf16"))(images())
    assert not torch.equal(logits, logits.bfloat16().float())


def test_bf16_keeps_the_gradient_of_a_cross_entropy_that_has_nearly_vanished():
    """fp16 ends at 6e-8: there it would be exactly zero."""
    model = small()
    model[-1].bias[0] += 30
    points, labels = images().requires_grad_(), torch.zeros(6, dtype=torch.long)
    loss = functional.cross_entropy(
        search(model, Speedups("bf16"))(points), labels, reduction="none"
    )
    (gradient,) = torch.autograd.grad(loss.sum(), points)
    sizes = gradient.abs().flatten(1).amax(dim=1)
    assert (sizes > 0).all()
    assert (sizes < 1e-9).all()


def test_bf16_is_left_out_where_a_model_mixes_types():
    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(72, 4)

        def forward(self, x):
            features = x.new_zeros(len(x), 72)
            features[torch.arange(len(x))] = self.conv(x).flatten(1)
            return self.head(features)

    model = Strict().eval()
    asked = search(model, Speedups("bf16"))
    assert asked.notes[0].startswith("bf16 was left out of the search: ")
    assert torch.equal(asked(images()), model(images()))


class Recorder:
    """Stands for a compiler.

    The compiled model says what the model says, and cannot be asked whether it is true.
    """

    def __init__(self, monkeypatch, change=lambda logits: logits):
        self.shapes, self.options = [], []
        self._change = change
        monkeypatch.setattr(torch, "compile", self._compile)

    def _compile(self, model, **options):
        self.options.append(options)
        return Compiled(lambda points: self._change(self._seen(model, points)))

    def _seen(self, model, points):
        self.shapes.append(tuple(points.shape))
        return model(points)


class Compiled:
    def __init__(self, ask):
        self._ask = ask

    def __call__(self, points):
        return self._ask(points)

    def __bool__(self):
        raise TypeError("a compiled module has no truth")


def test_every_compiled_call_has_the_same_shape_whatever_is_asked(monkeypatch):
    recorder = Recorder(monkeypatch)
    asked = search(small(), Speedups(compile=True), size=4)
    for n in (1, 3, 4, 9):
        with torch.no_grad():
            assert asked(images(n)).shape == (n, 10)
    assert set(recorder.shapes) == {(4, 1, 8, 8)}
    assert recorder.options == [{"dynamic": False, "mode": "default"}]


def test_a_batch_less_than_half_full_is_asked_as_it_is(monkeypatch):
    recorder, plain = Recorder(monkeypatch), []
    model = small()
    model.register_forward_hook(lambda _part, inputs, _output: plain.append(len(inputs[0])))
    asked = search(model, Speedups(compile=True), size=8)
    with torch.no_grad():
        asked(images(3))
        asked(images(10))
        asked(images(4))
    assert [shape[0] for shape in recorder.shapes] == [8, 8, 8]
    assert 3 in plain
    assert 2 in plain
    assert 4 not in plain


@given(n=st.integers(1, 9), size=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_filling_up_and_dividing_change_neither_logits_nor_gradients(n, size):
    model = small()
    with pytest.MonkeyPatch.context() as patch:
        Recorder(patch)
        asked = search(model, Speedups(compile=True), size=size)
        assert_same(asked, model, images(n), tolerance=1e-5)
        assert asked.notes == []


def test_with_and_without_gradient_are_two_graphs(monkeypatch):
    recorder = Recorder(monkeypatch)
    model = small()
    asked = search(model, Speedups(compile=True))
    assert recorder.options == []
    with torch.no_grad():
        asked(images())
    answers(asked, images())
    answers(asked, images())
    assert len(recorder.options) == 2


def test_later_calls_do_not_overwrite_what_a_call_has_given(monkeypatch):
    """CUDA graphs give the same memory at every call."""
    memory = torch.empty(4, 10)
    Recorder(monkeypatch, memory.copy_)
    asked = search(small(), Speedups(compile=True), size=4)
    with torch.no_grad():
        first = asked(images(4))
        kept = first.clone()
        asked(images(4).flip(0))
    assert torch.equal(first, kept)


def fails(error):
    def compiled(*_, **__):
        raise error

    return compiled


def test_without_a_compiler_the_search_goes_on_and_says_so(monkeypatch):
    monkeypatch.setattr(torch, "compile", fails(RuntimeError("no C++ compiler\nlong story")))
    model = small()
    asked = search(model, Speedups(compile=True))
    assert torch.equal(asked(images(4)), model(images(4)))
    asked(images())
    assert asked.notes == ["compile was left out of the search: no C++ compiler"]


def test_a_compiled_model_that_says_something_else_is_not_asked(monkeypatch):
    Recorder(monkeypatch, lambda logits: logits.flip(1))
    model = small()
    asked = search(model, Speedups(compile=True))
    assert torch.equal(asked(images(4)), model(images(4)))
    assert "logits changed by" in asked.notes[0]


def test_running_out_of_memory_is_no_fault_of_a_lever(monkeypatch):
    monkeypatch.setattr(torch, "compile", fails(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        search(small(), Speedups(compile=True))(images())


@pytest.mark.slow
def test_a_really_compiled_model_agrees_with_and_without_gradient():
    model = small()
    asked = search(model, Speedups(fold=True, compile=True), size=4)
    with torch.no_grad():
        assert torch.allclose(asked(images(3)), model(images(3)), atol=1e-4)
    assert_same(asked, model, images(6))
    points = images(2).requires_grad_()
    first, second = asked(points)[:, :2].sum(dim=0).unbind()
    slopes = [
        torch.autograd.grad(first, points, retain_graph=True)[0],
        torch.autograd.grad(second, points)[0],
    ]
    true = [torch.autograd.grad(model(points)[:, one].sum(), points)[0] for one in (0, 1)]
    assert torch.allclose(torch.stack(slopes), torch.stack(true), atol=1e-4)
    assert asked.notes == []
