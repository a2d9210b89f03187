"""Models that are broken on purpose, each with the finding that it must raise.

Every function without a leading underscore that returns a module is a factory: `rkd check
tests/broken.py:rounded`.
"""

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.datasets import open_dataset
from robustbench_kd.defences import ensemble, frontend
from robustbench_kd.defences.classifier import Classifier

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
SHAPE = (1, 8, 8)


class Through(nn.Module):
    """A network with a change of its input and a change of its output."""

    def __init__(self, network, before=lambda images: images, after=lambda logits: logits):
        super().__init__()
        self.network = network
        self.before = before
        self.after = after

    def forward(self, images):
        return self.after(self.network(self.before(images)))


class Undeclared(nn.Module):
    """An ensemble that draws the member that answers from torch's own generator."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images):
        return self.members[int(torch.randint(len(self.members), ()))](images)


class Reseeding(nn.Module):
    """Noise that is the same every time."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        torch.manual_seed(0)
        return self.network(images + 0.05 * torch.randn_like(images))


class BatchStatistics(nn.Module):
    """Normalises by the statistics of the batch in both modes."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(0.4 + 0.3 * functional.batch_norm(images, None, None, training=True))


class Detached(nn.Module):
    """Two networks vote, but only one gives gradients."""

    def __init__(self, network, other):
        super().__init__()
        self.network = network
        self.other = other

    def forward(self, images):
        return self.network(images) + 4 * self.other(images.detach())


class Purifying(nn.Module):
    """Takes a step down the entropy of its answer before it answers."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        with torch.enable_grad():
            points = images.detach().requires_grad_()
            logits = self.network(points).log_softmax(dim=1)
            (slope,) = torch.autograd.grad((logits.exp() * logits).sum(), points)
        return self.network(images + 0.01 * slope.sign())


class Winners(nn.Module):
    """k-winners-take-all instead of ReLU (Xiao et al. 2020): it keeps the largest activations."""

    def __init__(self, fraction):
        super().__init__()
        self.fraction = fraction

    def forward(self, features):
        flat = features.flatten(1)
        count = max(1, int(self.fraction * flat.shape[1]))
        least = flat.topk(count, dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(features)


def digits(name):
    """A shipped checkpoint."""
    (target,) = describe(str(CHECKPOINTS / f"digits-{name}.toml"), Choices())
    return load(target, classes=10, shape=SHAPE).model


def rounded():
    return Through(digits("plain"), before=lambda images: (images * 4).round() / 4).eval()


def jpeg():
    """Rounds the coefficients of the cosine transform of 8x8 blocks, as JPEG of low quality."""
    cosine = _cosine_transform()

    def compressed(images):
        coefficients = cosine @ images @ cosine.T
        return (cosine.T @ ((coefficients * 8).round() / 8) @ cosine).clamp(0, 1)

    return Through(digits("plain"), before=compressed).eval()


def clamped():
    """A clamp that changes nothing, as newer versions of torch have it: no gradient at bounds."""

    def clamp(images):
        inner = (images > 0) & (images < 1)
        return torch.where(inner, images, images.detach())

    return Through(digits("small"), clamp).eval()


def saturated():
    return Through(digits("plain"), after=lambda logits: logits * 1e4).eval()


def cold():
    """Probabilities at a temperature of 0.001, as logarithms."""
    return Through(digits("plain"), after=lambda logits: (logits / 1e-3).log_softmax(dim=1)).eval()


def flat():
    return Through(digits("plain"), after=lambda logits: logits * 1e-6).eval()


def detached():
    return Detached(digits("small"), digits("plain")).eval()


def noisy():
    return Through(
        digits("plain"), before=lambda images: images + 0.1 * torch.randn_like(images)
    ).eval()


def reseeding():
    return Reseeding(digits("plain")).eval()


def one_hot():
    return Through(
        digits("plain"), after=lambda logits: functional.one_hot(logits.argmax(dim=1), 10).float()
    ).eval()


def batch_statistics():
    return BatchStatistics(digits("plain")).eval()


def stopped():
    """A front end that blurs, and lets no gradient through."""
    blur = torch.full((1, 1, 3, 3), 1 / 9)
    return Through(
        digits("plain"), before=lambda images: functional.conv2d(images, blur, padding=1).detach()
    ).eval()


def infinite_slope():
    """Squares the square root of the image: the slope is infinite at black pixels."""
    return Through(digits("plain"), before=lambda images: images.sqrt().square()).eval()


def winners():
    network = digits("teacher")
    for name, part in list(network.named_children()):
        if isinstance(part, nn.ReLU):
            setattr(network, name, Winners(0.1))
    return network.eval()


def twice_softmax():
    return Through(digits("plain"), after=lambda logits: logits.softmax(dim=1)).eval()


def masked(seed=0, depth=33):
    """An untrained deep front end, which masks the gradients of the network behind it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        front = frontend.assemble(
            [digits("plain")], shape=SHAPE, depth=depth, width=16, amplitude=0.05
        )
    data = open_dataset("digits", split="train")
    front.fit(data.images, data.labels, data.images[:1], data.labels[:1])
    return front.eval()


def masked_ensemble():
    return ensemble.assemble([masked(seed) for seed in range(3)]).eval()


def undeclared_ensemble():
    return Undeclared([digits("plain"), digits("teacher"), digits("small")]).eval()


def declared_ensemble():
    return ensemble.assemble([digits("plain"), digits("teacher"), digits("small")]).eval()


def purifying():
    return Purifying(digits("plain")).eval()


def wrong_normalisation():
    return Classifier(digits("plain"), (0.1307,), (0.3081,)).eval()


def dropout():
    return nn.Sequential(digits("plain"), nn.Dropout(0.2)).train()


def _cosine_transform(size=8):
    grid = torch.arange(size, dtype=torch.float32)
    rows = torch.cos(math.pi * (grid[None] + 0.5) * grid[:, None] / size) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


BROKEN = {
    rounded: "zero-gradients",
    jpeg: "quantised-input",
    clamped: "clamped-pixels",
    saturated: "saturated-loss",
    cold: "saturated-loss",
    flat: "saturated-loss",
    detached: "gradient-mismatch",
    noisy: "randomness",
    reseeding: "randomness",
    one_hot: "zero-gradients",
    batch_statistics: "batch-dependence",
    stopped: "zero-gradients",
    infinite_slope: "zero-gradients",
    winners: "gradient-mismatch",
    twice_softmax: "probabilities",
    masked: "loss-gain",
    masked_ensemble: "loss-gain",
    undeclared_ensemble: "randomness",
    purifying: "optimisation-in-forward",
    wrong_normalisation: "normalisation",
    dropout: "training-mode",
}
