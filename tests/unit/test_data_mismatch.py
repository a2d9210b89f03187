"""Clean answers that do not fit the labels: found and explained, and never on honest networks."""

import re
from dataclasses import replace

import pytest
import torch
from broken import digits
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robustbench_kd.checkpoints.card import Normalisation
from robustbench_kd.checkpoints.normalisation import PRESETS
from robustbench_kd.core.records import Severity
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.probing.mismatch import clean_checks
from robustbench_kd.models import small_cnn
from robustbench_kd.tensors.oracle import Oracle
from robustbench_kd.trust._agreement import renaming, right_after_renaming, tells_nothing

CPU = torch.device("cpu")
DATA = open_dataset("digits", split="test", limit=60)
HONEST = ("plain", "small", "teacher")


def findings_of(model, data=DATA, used=None):
    oracle = Oracle(model, CPU)
    logits = oracle.logits(data.images)
    return clean_checks(oracle, logits, data, used).findings


def the_finding(model, data=DATA, used=None):
    (finding,) = findings_of(model, data, used)
    assert (finding.check, finding.severity) == ("data-mismatch", Severity.RED)
    return finding


def best(finding):
    """The first of the explanations that were tried."""
    return finding.message.partition("would gain: ")[2]


class Around(nn.Module):
    """A network behind a change of its images and in front of one of its logits."""

    def __init__(self, network, *, before=lambda images: images, after=lambda logits: logits):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, images):
        return self.after(self.network(self.before(images)))


# Honest networks


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("size", [1, 2, 5, 10, 20])
def test_an_honest_network_raises_nothing_on_a_handful_of_images(name, size):
    model = digits(name)
    data = open_dataset("digits", split="test", limit=100)
    oracle = Oracle(model, CPU)
    for start in range(0, len(data), size):
        part = data.take(torch.arange(start, min(start + size, len(data))))
        assert clean_checks(oracle, oracle.logits(part.images), part, None).findings == []


def test_a_right_network_costs_no_pass():
    oracle = Oracle(digits("plain"), CPU)
    logits = oracle.logits(DATA.images)
    before = oracle.meter.forwards
    entry = clean_checks(oracle, logits, DATA, None)
    assert (entry.forwards, oracle.meter.forwards) == (0, before)


def test_a_doubtful_network_costs_a_few_passes_of_at_most_128_images():
    data = open_dataset("digits", split="test", limit=300)
    model = small_cnn.build(classes=10, channels=1, width=4, size=8)
    oracle = Oracle(model, CPU)
    entry = clean_checks(oracle, oracle.logits(data.images), data, None)
    assert 128 < entry.forwards <= 18 * 128


@pytest.mark.parametrize("size", [5, 10, 20, 50])
def test_a_weak_network_is_hardly_ever_called_chance(size):
    """Four answers of ten are right, the others are spread over all classes."""
    labels, others = torch.randint(10, (2, 1000, size))
    answers = torch.where(torch.rand(1000, size) < 0.35, labels, others)
    called = [tells_nothing(*pair, 10) for pair in zip(answers, labels, strict=True)]
    assert sum(called) <= 15


@pytest.mark.parametrize("n", range(1, 10))
def test_a_handful_of_wrong_answers_proves_nothing(n):
    labels = torch.arange(n) % 10
    assert not tells_nothing((labels + 1) % 10, labels, 10)


# Networks and data that do not match


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("answer", [0, 1])
def test_one_answer_to_everything_is_chance(classes, answer):
    labels = torch.arange(60) * 7 % classes
    assert tells_nothing(torch.full_like(labels, answer), labels, classes)


@pytest.mark.parametrize("seed", range(5))
def test_an_untrained_network_is_red(seed):
    torch.manual_seed(seed)
    finding = the_finding(small_cnn.build(classes=10, channels=1, width=8, size=8))
    assert "no better than chance" in finding.message
    assert "untrained" in finding.advice


@pytest.mark.parametrize(("step", "sign", "remedy"), [(1, "-", "subtract 1"), (-1, "+", "add 1")])
def test_labels_shifted_by_one_are_named_first(step, sign, remedy):
    labels = DATA.labels + step
    kept = ((labels >= 0) & (labels < 10)).nonzero()[:, 0]
    shifted = replace(DATA, labels=labels).take(kept)
    finding = the_finding(digits("plain"), shifted)
    assert best(finding).startswith(f"labels shifted by one (label c is class c {sign} 1")
    assert remedy in finding.advice


def test_a_background_class_is_named_with_the_number_of_outputs():
    def with_background(logits):
        return torch.cat([torch.full_like(logits[:, :1], -50), logits], dim=1)

    finding = the_finding(Around(digits("plain"), after=with_background))
    assert "tells 11 classes apart, the data set has 10" in finding.message
    assert best(finding).startswith("labels shifted by one (label c is class c + 1")
    assert "background" in finding.advice


def test_classes_in_the_order_of_text_are_renamed():
    order = torch.tensor([0, 1, 9, 2, 3, 4, 5, 6, 7, 8])
    finding = the_finding(digits("plain"), replace(DATA, labels=order[DATA.labels]))
    assert best(finding).startswith("classes renamed one to one (2 is 3, 3 is 4,")
    assert "classes=FILE" in finding.advice


def test_a_subset_of_the_classes_is_renamed():
    kept = torch.isin(DATA.labels, torch.tensor([2, 5, 8])).nonzero()[:, 0]
    part = DATA.take(kept)
    part = replace(part, labels=(part.labels - 2) // 3, classes=3)
    finding = the_finding(digits("plain"), part)
    assert best(finding).startswith("classes renamed one to one (0 is 2, 1 is 5, 2 is 8)")


def test_outputs_beyond_the_classes_of_the_data_are_left_out():
    def with_rivals(logits):
        return torch.cat([logits, logits[:, :5] + 1], dim=1)

    data = open_dataset("digits", split="test", limit=100)
    finding = the_finding(Around(digits("plain"), after=with_rivals), data)
    assert "only the first 10 classes of the model" in finding.message


def test_images_that_were_scaled_twice_are_named():
    dark = replace(DATA, images=DATA.images / 255)
    finding = the_finding(digits("plain"), dark)
    assert best(finding).startswith("pixels times 255")


def test_a_network_that_wants_bytes_is_named():
    finding = the_finding(Around(digits("plain"), before=lambda images: images / 255))
    assert best(finding).startswith("pixels times 255")


class ByColour(nn.Module):
    """Class 0 is red, 1 is green and 2 is blue, but only just."""

    def forward(self, images):
        return 10 * images.mean(dim=(2, 3))


def test_channels_in_the_other_order_are_named():
    labels = torch.arange(60) % 3
    images = 0.5 + 0.2 * nn.functional.one_hot(labels, 3).float().view(60, 3, 1, 1).expand(
        60, 3, 4, 4
    )
    data = replace(DATA, images=images.flip(1), labels=labels, classes=3)
    finding = the_finding(ByColour(), data)
    assert "channels in the other order (BGR) +66.7" in finding.message
    assert findings_of(ByColour(), replace(data, images=images)) == []


class Bright(nn.Module):
    """Tells images apart by whether their normalised mean is below -1.5, above 1.5 or between."""

    def forward(self, images):
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([-mean - 1, torch.zeros_like(mean), mean - 1], dim=1)


def bright_data():
    """Pixels whose normalised means are -1.8, 0 and 1.8 under `half`, of class 0, 1 and 2."""
    labels = torch.arange(60) % 3
    values = (labels - 1).float() * 0.4 + 0.5
    return replace(
        DATA, images=values.view(60, 1, 1, 1).expand(60, 1, 4, 4).clone(), labels=labels, classes=3
    )


HALF = PRESETS["half"]


def test_a_normalisation_of_another_set_is_named():
    def inside(images):
        return 1.5 * (images - HALF.mean[0]) / HALF.std[0]

    class OfHalf(nn.Module):
        def forward(self, images):
            return Bright()(1.5 * images)

    data = bright_data()
    assert findings_of(Around(Bright(), before=inside), data) == []
    wrong = Normalisation(mean=(0.0,), std=(10.0,))
    behind_wrong = Around(OfHalf(), before=lambda images: images / 10)
    finding = the_finding(behind_wrong, data, wrong)
    assert "normalisation half +66.7" in finding.message
    forgotten = the_finding(OfHalf(), data)
    assert best(forgotten).startswith("normalisation")


def test_a_doubled_normalisation_is_named():
    def once(images):
        return (images - 0.5) / 0.1

    class Twice(nn.Module):
        def forward(self, images):
            return Bright()(0.4 * once((images - HALF.mean[0]) / HALF.std[0]))

    finding = the_finding(Twice(), bright_data())
    assert "undone first" in finding.message


# Renaming


@given(
    order=st.permutations(range(5)),
    repeats=st.integers(3, 6),
)
def test_a_renaming_is_found_whatever_it_is(order, repeats):
    labels = torch.arange(5).repeat(repeats)
    answers = torch.tensor(order)[labels]
    assert renaming(answers, labels) == dict(enumerate(order))
    assert bool(right_after_renaming(answers, labels).all())


def test_a_renaming_of_single_images_is_worth_nothing():
    labels = torch.arange(50)
    assert not bool(right_after_renaming(labels.flip(0), labels).any())


@given(st.integers(0, 1000))
def test_a_renaming_gains_nothing_from_answers_by_luck(seed):
    generator = torch.Generator().manual_seed(seed)
    labels, answers = torch.randint(10, (2, 200), generator=generator)
    assert float(right_after_renaming(answers, labels).float().mean()) < 0.25


def test_exchanged_axes_are_named():
    turned = replace(DATA, images=DATA.images.transpose(2, 3).contiguous())
    finding = the_finding(digits("plain"), turned)
    assert best(finding).startswith("height and width exchanged")
    assert "height before width" in finding.advice


def test_normalisations_that_gain_nearly_as_much_are_named_too():
    wanted = PRESETS["cifar10"]
    mean, std = (torch.tensor(part).view(1, -1, 1, 1) for part in (wanted.mean, wanted.std))
    images = torch.rand(len(DATA), 3, 4, 4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).eval()
    labels = network((images - mean) / std).argmax(dim=1)
    data = replace(DATA, images=images, labels=labels)
    finding = the_finding(network, data)
    assert best(finding).startswith("normalisation cifar10")
    assert re.search(r"\(nearly as good: .*normalisation cifar100\)", finding.advice)
