"""Answers that are no numbers: they do not count, and do not end a run."""

import math

import pytest
import torch
from oracles import images_for, linear, request
from torch import nn

from robustbench_kd.core.errors import ModelError
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.tensors.oracle import Oracle, check_logits
from robustbench_kd.tensors.undefined import settled, unmasked

CPU = torch.device("cpu")
ATTACKS = ["apgd-ce", "apgd-t", "apgd-margin", "apgd-dlr", "fab-t", "square"]


class Overflowing(nn.Module):
    """A linear network that says nothing where an image has left its eight-bit values."""

    def __init__(self, network, value=math.nan, share=1.0):
        super().__init__()
        self.network = network
        self.value = value
        self.share = share

    def forward(self, images):
        logits = self.network(images)
        pixels = images * 255
        off = ((pixels - pixels.round()).abs() > 1e-3).flatten(1).any(dim=1)
        chosen = off & (images.flatten(1).mean(dim=1) < self.share)
        return torch.where(chosen[:, None], logits * 0 + self.value, logits)


class Masking(nn.Module):
    """A network with more outputs than classes; those that cannot be are masked."""

    def __init__(self, network, more=3):
        super().__init__()
        self.network = network
        self.more = more

    def forward(self, images):
        logits = self.network(images)
        return torch.cat([logits, logits.new_full((len(logits), self.more), -math.inf)], dim=1)


def eight_bit(model, n=12):
    """Half of the images are dark."""
    data = images_for(model, n=n)
    shades = torch.where(torch.arange(n) % 2 == 0, 0.2, 1.0).view(-1, 1, 1, 1)
    images = (data.images * shades * 255).round() / 255
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    return type(data)(data.name, images, labels, data.ids, data.classes)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_point_without_an_answer_breaks_nothing(attack, value, tmp_path):
    model = linear(classes=6, shape=(3, 8, 8))
    asked = request(Overflowing(model, value), eight_bit(model), threat="linf:0.1", suite=attack)
    record = evaluate(asked, tmp_path).record
    assert record.robust.value == 1
    (finding,) = [one for one in record.findings if one.check == "undefined-answers"]
    assert finding.severity == "red"
    assert finding.value > 0


@pytest.mark.parametrize("attack", ATTACKS)
def test_other_points_count_as_before(attack, tmp_path):
    model = linear(classes=6, shape=(3, 8, 8))
    data = eight_bit(model)
    robust = []
    for network in (model, Overflowing(model, share=0.3)):  # no dark image gets an answer
        outcome = evaluate(
            request(network, data, threat="linf:0.1", suite=attack), tmp_path, fresh=True
        )
        robust.append(outcome.record.robust.value)
    assert robust == [0, 0.5]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("norm", ["linf:0.02", "l2:0.2"])
def test_masked_classes_change_no_verdict(attack, norm, tmp_path):
    model = linear(classes=6, shape=(3, 8, 8))
    data = images_for(model, n=16)
    robust = []
    for network in (model, Masking(model)):
        outcome = evaluate(request(network, data, threat=norm, suite=attack), tmp_path)
        robust.append(outcome.record.robust.value)
    assert 0 < robust[0] < 1
    assert robust[1] == pytest.approx(robust[0], abs=1.01 / 16)


def test_nan_on_clean_images_is_refused():
    with pytest.raises(ModelError, match="NaN or infinite logits on 1 of 2 images"):
        check_logits(torch.tensor([[0.0, math.nan], [0.0, 1.0]]), 2)


def test_an_answer_in_which_every_class_is_masked_is_refused():
    with pytest.raises(ModelError, match="on 1 of 2 images"):
        check_logits(torch.tensor([[-math.inf, -math.inf], [0.0, 1.0]]), 2)


def test_a_masked_class_is_below_all_others():
    logits = Oracle(Masking(linear(classes=6, shape=(3, 8, 8))), CPU).logits(torch.rand(4, 3, 8, 8))
    assert logits.isfinite().all()
    assert (logits[:, 6:] < logits[:, :6].amin(dim=1, keepdim=True)).all()


def test_undefined_answers_are_for_the_label_and_have_no_gradient():
    weights = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    answers = weights * torch.tensor([[1.0, 1.0, 1.0], [1.0, math.nan, 1.0]])
    found, undefined = settled(answers, torch.tensor([0, 2]))
    assert undefined.tolist() == [False, True]
    assert found.argmax(dim=1).tolist() == [2, 2]
    (gradient,) = torch.autograd.grad(found.sum(), answers)
    assert gradient.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_finite_answers_stay_as_they_are():
    answers = torch.randn(2, 3, 4)
    assert settled(answers, torch.tensor([0, 1, 2]))[0] is answers
    assert torch.equal(unmasked(answers), answers)
