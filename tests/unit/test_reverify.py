"""The second look at a run.

Defences of every kind, what chance and rounding excuse, and what they do not.
"""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import Changed, Linear, conv, images_for, request
from torch import nn

from robustbench_kd.core.rundir import ADVERSARIAL, DRAWS
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.defences import ensemble, smoothed
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.engine.reverify.reverify import Means, verify
from robustbench_kd.tensors.stored_images import read, write

SHORT = {"apgd-ce": {"steps": 8}, "apgd-margin": {"steps": 8}, "square": {"queries": 20}}
CPU = torch.device("cpu")


class Refusing(nn.Module):
    """Refuses images that are too bright; its last logit says so."""

    abstains = True

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        logits = self.network(images)
        bright = images.flatten(1).mean(dim=1, keepdim=True) > 0.505
        return torch.cat(
            [logits, torch.where(bright, 1.0, -1.0) + logits.amax(dim=1, keepdim=True)], dim=1
        )


class Other(nn.Module):
    """Shifts the logits of a network."""

    def __init__(self, network, shift):
        super().__init__()
        self.network, self.shift = network, shift

    def forward(self, images):
        return self.network(images) + self.shift * torch.arange(10.0, dtype=images.dtype)


def defence(kind):
    network = conv()
    return {
        "plain": lambda: network,
        "smoothed": lambda: smoothed.assemble([network], sigma=0.1),
        "ensemble": lambda: ensemble.assemble([network, Other(conv(), 0.01)], weights=(0.25, 0.75)),
        "refusing": lambda: Refusing(network),
    }[kind]().eval()


def evaluated(kind, results, *, engine="native", suite="apgd-ce", n=10, threat="linf:0.1"):
    model = defence(kind)
    data = images_for(conv(), n=n, wrong=1)
    short = replace(parse_suite(suite), budgets=SHORT, norms={}, surfaces={})
    asked = replace(
        request(model, data, threat=threat, engine=engine, saves=True, batch_size=4), suite=short
    )
    return asked, evaluate(asked, results)


def checked(asked, outcome, **means):
    return verify(outcome.folder, outcome.record, asked.data, asked.subject, Means(CPU, **means))


def failing(checks):
    return {check.name for check in checks if not check.holds}


@pytest.mark.parametrize("engine", ["native", "autoattack"])
@pytest.mark.parametrize("kind", ["plain", "smoothed", "ensemble"])
def test_an_honest_run_holds_in_either_precision(tmp_path, kind, engine):
    asked, outcome = evaluated(kind, tmp_path, engine=engine)
    assert len(read(outcome.folder / ADVERSARIAL).ids) >= 3
    assert failing(checked(asked, outcome)) == set()
    assert failing(checked(asked, outcome, dtype=torch.float64, batch_size=3)) == set()


@pytest.mark.parametrize("threat", ["l2:0.8", "l1:6"])
def test_an_honest_run_in_another_norm_holds(tmp_path, threat):
    assert failing(checked(*evaluated("plain", tmp_path, threat=threat))) == set()


def test_to_reject_is_wrong_on_clean_images_and_right_under_attack(tmp_path):
    asked, outcome = evaluated("refusing", tmp_path)
    assert outcome.record.detection.clean_rejected.value > 0
    assert failing(checked(asked, outcome)) == set()


def test_adaptive_stages_keep_their_images(tmp_path):
    asked, outcome = evaluated("ensemble", tmp_path, suite="apgd-ce+adaptive", n=6)
    assert len(outcome.record.identity.adaptive) > 1
    assert failing(checked(asked, outcome)) == set()


@pytest.mark.parametrize("kind", ["smoothed", "ensemble"])
def test_a_clean_image_in_place_of_the_worst_one_is_caught_in_spite_of_chance(tmp_path, kind):
    asked, outcome = evaluated(kind, tmp_path)
    stored = read(outcome.folder / ADVERSARIAL)
    write(
        outcome.folder / ADVERSARIAL,
        replace(stored, images=np.r_[stored.originals, stored.images[8:]]),
    )
    assert "errors" in failing(checked(asked, outcome))


@pytest.mark.parametrize("kind", ["smoothed", "ensemble"])
@pytest.mark.parametrize("column", ["clean_wrong", "wrong"])
def test_edited_shares_are_caught(tmp_path, kind, column):
    asked, outcome = evaluated(kind, tmp_path)
    path = outcome.folder / DRAWS
    rows = list(csv.DictReader(path.read_text().splitlines()))
    rows[3][column] = str(float(float(rows[3][column]) < 0.5))
    path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    assert failing(checked(asked, outcome)) >= {
        "clean answers" if column == "clean_wrong" else "robust accuracy"
    }


@pytest.mark.parametrize("text", ["", "index,clean_wrong,wrong\n1,x,0\n", "index\n1,2,3,4\n", "\0"])
def test_damaged_shares_are_caught(tmp_path, text):
    asked, outcome = evaluated("smoothed", tmp_path)
    (outcome.folder / DRAWS).write_text(text)
    assert "files" in failing(checked(asked, outcome))


def nearly_tied(gap):
    """Two classes whose logits differ by a gap on every image, and whose order precision must not
    be asked for."""
    return Linear(torch.zeros(2, 64), torch.tensor([10.0, 10.0 - gap])).eval()


def test_what_rounding_decides_is_said_and_no_failure(tmp_path):
    model = nearly_tied(1e-5)
    data = images_for(model, n=6, shape=(1, 8, 8))
    asked = request(model, data, saves=True)
    outcome = evaluate(asked, tmp_path)
    swapped = replace(asked.subject, model=Changed(model, lambda logits: logits.flip(1)).eval())
    checks = verify(outcome.folder, outcome.record, data, swapped, Means(CPU))
    assert failing(checks) == set()
    (clean,) = (check for check in checks if check.name == "clean answers")
    assert (
        clean.found
        == "0 of 6 as recorded, 6 others by rounding (100, 101, 102, 103, 104 and 1 more)"
    )


def test_what_rounding_cannot_explain_is_a_failure(tmp_path):
    model = nearly_tied(0.1)
    asked = request(model, images_for(model, n=6, shape=(1, 8, 8)), saves=True)
    outcome = evaluate(asked, tmp_path)
    swapped = replace(asked.subject, model=Changed(model, lambda logits: logits.flip(1)).eval())
    checks = verify(outcome.folder, outcome.record, asked.data, swapped, Means(CPU))
    assert failing(checks) == {"clean answers", "clean accuracy", "robust accuracy"}
