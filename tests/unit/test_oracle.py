"""The oracle counts every pass, freezes what it calls, and lets no bad logits through."""

import contextlib

import pytest
import torch
from oracles import (
    Changed,
    Failing,
    conv,
    detached,
    dropout,
    infinite_logits,
    linear,
    nan_logits,
    picky,
)
from torch import nn

from robustbench_kd.core.errors import ModelError
from robustbench_kd.tensors.defence import Key
from robustbench_kd.tensors.meter import Meter
from robustbench_kd.tensors.oracle import (
    Oracle,
    check_logits,
    freeze,
    full_precision,
    is_out_of_memory,
)

CPU = torch.device("cpu")


def oracle(model, **options):
    return Oracle(model, CPU, **options)


def test_forwards_are_counted_in_examples():
    asked = oracle(linear())
    asked(torch.rand(3, 1, 8, 8))
    asked.logits(torch.rand(4, 1, 8, 8))
    assert (asked.meter.forwards, asked.meter.backwards) == (7, 0)


def test_every_backward_pass_is_counted_in_examples_also_a_second_one_through_the_same_logits():
    asked = oracle(conv(channels=1))
    images = torch.rand(5, 1, 8, 8, requires_grad=True)
    logits = asked(images)
    for column in (0, 1):
        torch.autograd.grad(logits[:, column].sum(), images, retain_graph=True)
    assert (asked.meter.forwards, asked.meter.backwards) == (5, 10)


def test_a_pass_that_fails_is_not_counted():
    asked = oracle(Failing(linear(), RuntimeError("no"), after=0))
    with pytest.raises(ModelError):
        asked.logits(torch.rand(3, 1, 8, 8))
    assert asked.meter.forwards == 0


def test_an_oracle_gives_the_models_own_logits_and_gradients():
    model, images = linear(), torch.rand(3, 1, 8, 8, requires_grad=True)
    asked = oracle(model)
    assert torch.equal(asked(images), model(images))
    (gradient,) = torch.autograd.grad(asked(images)[:, 2].sum(), images)
    assert torch.allclose(gradient.flatten(1), model.weight[2].expand(3, -1))


def test_a_gradient_is_taken_of_images_alone():
    model = conv(channels=1)
    oracle(model)(torch.rand(2, 1, 8, 8, requires_grad=True)).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_checked_logits_are_float32_on_the_cpu_without_a_graph():
    logits = oracle(linear().double()).logits(torch.rand(2, 1, 8, 8, requires_grad=True).double())
    assert (logits.dtype, logits.device, logits.requires_grad) == (torch.float32, CPU, False)


@pytest.mark.parametrize("make", [linear, dropout])
def test_freezing_says_whether_any_part_was_training_and_ends_it(make):
    model = make()
    assert freeze(model) == (make is dropout)
    assert not any(part.training for part in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_part_left_in_training_within_a_model_in_evaluation_is_noticed():
    model = nn.Sequential(linear(), nn.Dropout(0.5)).eval()
    model[1].train()
    assert oracle(model).was_training


def test_progress_is_told_after_every_pass():
    told = []
    asked = oracle(linear(), meter=Meter(told.append))
    asked(torch.rand(2, 1, 8, 8))
    asked.logits(torch.rand(3, 1, 8, 8))
    assert told == [2, 5]


@pytest.mark.parametrize("make", [nan_logits, infinite_logits])
def test_logits_that_are_not_finite_are_refused_with_their_number(make):
    with pytest.raises(
        ModelError, match="NaN or infinite logits on 2 of 2 images: check the weights"
    ):
        oracle(make()).logits(torch.rand(2, 1, 8, 8))


def test_one_bad_image_among_good_ones_is_enough():
    output = torch.zeros(5, 3)
    output[2, 1] = torch.nan
    with pytest.raises(ModelError, match="on 1 of 5 images"):
        check_logits(output, 5)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ((torch.zeros(2, 3),), "expected the model to return a tensor of logits, got tuple"),
        ({"logits": torch.zeros(2, 3)}, "got dict"),
        (None, "got NoneType"),
        (torch.zeros(2, 3, 1, 1), r"expected logits of shape \(2, classes\), got \(2, 3, 1, 1\)"),
        (torch.zeros(3, 3), r"got \(3, 3\)"),
        (torch.zeros(2), r"got \(2,\)"),
        (torch.zeros(2, 1), r"got \(2, 1\)"),
    ],
)
def test_what_is_no_logits_is_refused(output, said):
    with pytest.raises(ModelError, match=said):
        oracle(Changed(linear(), lambda _: output)).logits(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (linear(), "mat1 and mat2 shapes cannot be multiplied .*; choose the data set"),
        (picky(), r"input height \(8\) does not match the model \(224\); choose the data set"),
        (Failing(linear(), ValueError(), after=0), "ValueError; call it on torch.rand"),
        (Failing(linear(), RuntimeError("first\nsecond"), after=0), "first; call it on torch.rand"),
    ],
)
def test_images_that_the_model_refuses_are_an_error_of_one_line(model, reason):
    with pytest.raises(ModelError, match=rf"images of shape \(3, 8, 9\) .*: {reason}") as caught:
        oracle(model).logits(torch.rand(2, 3, 8, 9))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), MemoryError(), KeyboardInterrupt()]
)
def test_running_out_of_memory_and_an_interruption_are_not_the_models_fault(error):
    with pytest.raises(type(error)):
        oracle(Failing(linear(), error, after=0)).logits(torch.rand(2, 1, 8, 8))


def test_a_model_without_a_gradient_can_still_be_asked():
    asked = oracle(detached())
    assert not asked(torch.rand(2, 1, 8, 8, requires_grad=True)).requires_grad
    assert asked.meter.forwards == 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            ),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied .*; choose the data set"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_running_out_of_memory_is_told_apart(error, expected):
    assert is_out_of_memory(error) == expected


@pytest.mark.parametrize("allowed", [True, False])
def test_full_precision_switches_tf32_off_and_back(allowed):
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        with contextlib.suppress(KeyError), full_precision():
            assert not any(backend.allow_tf32 for backend in backends)
            raise KeyError
        assert [backend.allow_tf32 for backend in backends] == [allowed, allowed]
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


class Dice(nn.Module):
    """Says the numbers it has drawn; refuses more rows than there is memory for."""

    def __init__(self, room):
        super().__init__()
        self.room, self.asked = room, []

    def draw(self, images, key):
        self.asked.append(len(images))
        if len(images) > self.room:
            raise MemoryError
        return key.uniform("dice", 3)


@pytest.mark.parametrize(("room", "asked"), [(1000, [512, 128]), (20, [320, *[7] * 20])])
def test_draws_of_few_images_are_asked_together_where_memory_allows(room, asked):
    dice, images, ids = Dice(room), torch.rand(7, 1, 2, 2), torch.arange(7)
    oracle = Oracle(dice, CPU)
    answers = oracle.answers(images, ids, stream="judge", draws=40 if room == 1000 else 20)
    expected = Key(0, "judge", ids=ids, draw=torch.full((7,), 9)).uniform("dice", 3)
    assert dice.asked == asked
    assert oracle.meter.forwards == 7 * len(answers)
    assert torch.equal(answers[9], expected)
