"""Classifiers with known answers, and what a test needs to evaluate them.

Every function without a leading underscore that returns a module is a factory: `rkd eval
tests/oracles.py:linear`.
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.run.request import Request
from robustbench_kd.tensors.contracts import Dataset

SHAPE = (1, 8, 8)


class Linear(nn.Module):
    """Logits `flat(images) @ weight.T + bias`.

    The distance of a point to its decision boundary is exact.
    """

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images):
        return nn.functional.linear(images.flatten(1), self.weight, self.bias)


class Changed(nn.Module):
    """A model with something done to its output."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, images):
        return self.change(self.network(images))


class Noisy(nn.Module):
    """A model that sees each image through fresh noise."""

    def __init__(self, network, scale):
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, images):
        return self.network(images + self.scale * torch.randn_like(images))


class Quantised(nn.Module):
    """A model behind rounding, whose gradient is zero everywhere."""

    def __init__(self, network, levels=4):
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, images):
        return self.network((images * self.levels).round() / self.levels)


class Failing(nn.Module):
    """A model that raises from its `after`-th call on, or for more than `most` images.

    Counts its calls.
    """

    def __init__(self, network, error, *, after=10**9, most=10**9):
        super().__init__()
        self.network, self.error, self.after, self.most = network, error, after, most
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        if self.calls > self.after or len(images) > self.most:
            raise self.error
        return self.network(images)


def linear(classes=10, scale=1.0, shape=SHAPE):
    """A linear classifier with random weights, the same at every call."""
    generator = torch.Generator().manual_seed(classes)
    pixels = torch.Size(shape).numel()
    weight = torch.randn(classes, pixels, generator=generator)
    return Linear(scale * weight, -scale * weight.mean(dim=1) * pixels / 2).eval()


def nearest_mean():
    """Assigns a digit to the class whose mean training image is nearest; right on nine in ten."""
    from robustbench_kd.datasets import open_dataset

    data = open_dataset("digits", split="train")
    means = torch.stack(
        [data.images[data.labels == label].mean(dim=0) for label in range(10)]
    ).flatten(1)
    return Linear(2 * means, -means.square().sum(dim=1)).eval()


def slow_mean():
    """Recognises a digit by its nearest mean, and takes a moment.

    There is time to stop an evaluation in the middle.
    """

    def slow(logits):
        time.sleep(0.01)
        return logits

    return Changed(nearest_mean(), slow).eval()


def mortal():
    """Recognises a digit by its nearest mean, until its process is killed in the middle of an
    evaluation.

    `RKD_TEST_DEATHS` names a folder that holds a file for each death to come.
    """
    passes = 0

    def live_or_die(logits):
        nonlocal passes
        passes += 1
        if passes == 40:  # the process that only starts the workers needs fewer
            for death in sorted(Path(os.environ["RKD_TEST_DEATHS"]).iterdir()):
                with contextlib.suppress(FileNotFoundError):  # another process has died of it
                    death.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
        return logits

    return Changed(nearest_mean(), live_or_die).eval()


def conv(classes=10, channels=3, width=6):
    """A convolutional network for 8x8 images with random weights, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(classes)
        layers = [
            nn.Conv2d(channels, width, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1),
            nn.ReLU(),
        ]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, classes)).eval()


def dropout():
    """A classifier whose author forgot to call `eval`."""
    return nn.Sequential(linear(), nn.Dropout(0.5)).train()


def constant():
    """Gives every image the same logits, with no gradient to follow."""
    return Linear(torch.zeros(10, 64), torch.arange(10.0)).eval()


def masked():
    return Quantised(linear()).eval()


def noisy_mean():
    """Recognises a digit by its nearest mean, through noise that it keeps to itself."""
    return Noisy(nearest_mean(), 0.3).eval()


def coin_flip():
    return Noisy(linear(), 0.5).eval()


def probabilities():
    return Changed(linear(), lambda logits: logits.softmax(dim=1)).eval()


def nan_logits():
    return Changed(linear(), lambda logits: logits * torch.nan).eval()


def infinite_logits():
    return Changed(linear(), lambda logits: logits / 0).eval()


def detached():
    return Changed(linear(), torch.Tensor.detach).eval()


def picky():
    """Refuses every image as published networks do: by an assertion."""

    def refuse(_):
        raise AssertionError("input height (8) does not match the model (224)")

    return Changed(nn.Identity(), refuse).eval()


def greedy():
    """Needs more memory than there is, however small the batch."""
    return Failing(linear(), torch.OutOfMemoryError("CUDA out of memory"), most=0).eval()


def exhausted():
    """Runs out of memory for good after 150 calls, in the middle of a second evaluation by "
    "APGD-CE."""
    return Failing(linear(), torch.OutOfMemoryError("CUDA out of memory"), after=150).eval()


def three_classes():
    return linear(classes=3)


def images_for(model, n=24, shape=(3, 8, 8), wrong=0, seed=0):
    """Returns random images that a model classifies rightly, save the first `wrong` ones."""
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits = model(images)
    labels = logits.argmax(dim=1)
    classes = logits.shape[1]
    labels[:wrong] = (labels[:wrong] + 1) % classes
    ids = tuple(range(100, 100 + n))
    return Dataset("random", images, labels, ids, classes)


def request(model, data, *, threat="linf:0.05", suite="apgd-ce", **options):
    """Returns the request to evaluate a model as if it had been loaded from a file."""
    subject = Subject(
        name="net",
        family="classifier",
        model=model,
        network=model,
        architecture="net",
        normalisation=None,
        checkpoint_sha256="0" * 64,
        code_sha256="",
        notes=(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    options = {"probes": False} | options
    return Request(
        subject, data, Threat.parse(threat), parse_suite(suite), torch.device("cpu"), **options
    )


def told(state, model, wanted=True):
    """Returns what a state is told of the points that it asks for: logits, values and gradients.

    `wanted` is one bool for all rows or `(n,)`; the gradient is zero where none is wanted.
    """
    points = state.ask().detach().requires_grad_()
    wanted = torch.as_tensor(wanted)
    logits = model(points)
    values = state.objective(logits)
    if not wanted.any():
        return logits.detach(), values.detach(), None
    gradients = [torch.autograd.grad(value.sum(), points, retain_graph=True)[0] for value in values]
    chosen = wanted.expand(len(points)).view(-1, 1, 1, 1)
    return logits.detach(), values.detach(), torch.where(chosen, torch.stack(gradients), 0.0)


@dataclass(frozen=True)
class Round:
    """A round of a run in which all rows are in step.

    What was asked, the answers, the next state.
    """

    points: torch.Tensor
    logits: torch.Tensor
    wanted: bool
    state: Any


def drive(attack, state, model, norm):
    """Runs restarts to the end of their schedule, however soon they succeed; returns all rounds."""
    rounds = []
    for wanted in attack.schedule(norm):
        points = state.ask()
        answer = told(state, model, wanted)
        state = state.tell(*answer)
        rounds.append(Round(points, answer[0], wanted, state))
    return rounds


def asked(rounds):
    """Returns all points of a run, `(rounds, n, c, h, w)`."""
    return torch.stack([each.points for each in rounds])


@contextlib.contextmanager
def budgets(package, **small):
    """Makes the AutoAttack package spend less: `iterations` of APGD and FAB, `queries` of Square.

    Its own loop and ours both set their budgets by the same method, which is wrapped here.
    """
    kind, original = package.AutoAttack, package.AutoAttack._set_version
    iterations, queries = small.get("iterations", 10), small.get("queries", 50)

    def reduced_precision(self, version="standard"):
        original(self, version)
        for attack in (self.apgd, self.apgd_targeted):
            attack.n_iter = attack.n_iter_orig = iterations
            attack.n_iter_2 = attack.n_iter_min = 3
        self.fab.n_iter, self.square.n_queries = iterations, queries

    kind._set_version = reduced_precision
    try:
        yield
    finally:
        kind._set_version = original
