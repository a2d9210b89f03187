"""Habits of published code, each a wrapper around a classifier of digits: `habits.py:make`.

`make` wraps the one into the other, so that a test can try any combination.
"""

import sys
from collections import namedtuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from robustbench_kd.datasets import open_dataset


class Means(nn.Module):
    """Decides for the nearest mean image of a class: about nine of ten digits are right."""

    def __init__(self):
        super().__init__()
        data = open_dataset("digits", split="train")
        images = data.images.flatten(1)
        means = torch.stack([images[data.labels == label].mean(0) for label in range(10)])
        self.linear = nn.Linear(64, 10)
        self.linear.weight.data = means
        self.linear.bias.data = -means.square().sum(1) / 2

    def forward(self, images):
        return self.linear(images.flatten(1))


class Habit(nn.Module):
    """Gives images and logits through a function each; both also get a count of the calls."""

    def __init__(self, net, before=None, after=None, context=None):
        super().__init__()
        self.net, self.calls = net, 0
        self.before = before or (lambda images, _: images)
        self.after = after or (lambda logits, _: logits)
        self.context = context or torch.enable_grad

    def forward(self, images):
        self.calls += 1
        images = self.before(images, self.calls)
        if self.context is torch.enable_grad:
            return self.after(self.net(images), self.calls)
        with self.context():
            return self.after(self.net(images), self.calls)


class Checkpointed(Habit):
    def forward(self, images):
        return checkpoint(self.net, images, use_reentrant=True)


class TrainsItself(Habit):
    def forward(self, images):
        self.train()
        return self.net(images)


class TwoArguments(Habit):
    def forward(self, images, labels):
        return self.net(images)


class Draws(Habit):
    def draw(self, canvas, colour="red"):
        raise NotImplementedError


class ByNumpy(torch.autograd.Function):
    """Has a backward pass that fails."""

    @staticmethod
    def forward(_ctx, images):
        return images.clone()

    @staticmethod
    def backward(_ctx, _gradient):
        raise ValueError("no backward pass here")


Both = namedtuple("Both", "logits features")  # noqa: PYI024


def _masked(logits, _):
    """Masks the class that is the last choice of each image, as if it were impossible."""
    return logits.masked_fill(logits == logits.amin(dim=1, keepdim=True), -torch.inf)


def _off_data(logits_of):
    class OffData(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = logits_of

        def forward(self, images):
            off = ((images * 16 - (images * 16).round()).abs() > 1e-2).flatten(1).any(1)
            logits = self.net(images)
            return torch.where(off[:, None], logits * torch.nan, logits)

    return OffData()


def _exit(images, calls):
    if calls > 3:
        sys.exit(1)
    return images


def _late(images, calls):
    if calls > 60:
        raise KeyError("lost")
    return images


def _quantised(images, _):
    return torch.from_numpy(np.round(images.detach().numpy() * 15) / 15)


def _closes_over(net):
    seen = []
    net.register_forward_hook(lambda *call: seen.append(call[-1].detach()))
    return Habit(net, after=lambda logits, _: logits + 0 * seen[-1] if seen else logits)


HABITS = {
    "tuple": lambda net: Habit(net, after=lambda z, _: (z, z.sum())),
    "named": lambda net: Habit(net, after=lambda z, _: Both(z, z.repeat(1, 2))),
    "dict": lambda net: Habit(net, after=lambda z, _: {"logits": z}),
    "list": lambda net: Habit(net, after=lambda z, _: [z, z]),
    "nothing": lambda net: Habit(net, after=lambda *_: None),
    "number": lambda net: Habit(net, after=lambda *_: 3),
    "classes": lambda net: Habit(net, after=lambda z, _: z.argmax(1)),
    "squeezed": lambda net: Habit(net, after=lambda z, _: z.squeeze()),
    "spatial": lambda net: Habit(net, after=lambda z, _: z[:, :, None, None]),
    "transposed": lambda net: Habit(net, after=lambda z, _: z.T),
    "one logit": lambda net: Habit(net, after=lambda z, _: z[:, :1]),
    "background": lambda net: Habit(net, after=lambda z, _: functional.pad(z, (1, 0), value=-9.0)),
    "constant": lambda net: Habit(net, after=lambda z, _: torch.ones_like(z)),
    "softmax": lambda net: Habit(net, after=lambda z, _: z.softmax(1)),
    "huge": lambda net: Habit(net, after=lambda z, _: z * 1e38),
    "not a number": lambda net: Habit(net, after=lambda z, _: z * torch.nan),
    "masked": lambda net: Habit(net, after=_masked),
    "nan off data": _off_data,
    "in place": lambda net: Habit(net, lambda x, _: x.sub_(0.1).add_(0.1)),
    "clamps": lambda net: Habit(net, lambda x, _: x.clamp_(0, 1)),
    "view": lambda net: Habit(net, lambda x, _: x.view(len(x), -1).view(len(x), 1, 8, 8)),
    "transposed view": lambda net: Habit(net, lambda x, _: x.transpose(2, 3).view(len(x), 64)),
    "fixed batch": lambda net: Habit(net, lambda x, _: x.view(1, 1, 8, 8)),
    "numpy": lambda net: Habit(net, lambda x, _: torch.from_numpy(x.numpy())),
    "quantised": lambda net: Habit(net, _quantised),
    "meta": lambda net: Habit(net, lambda x, _: x.to("meta")),
    "cuda": lambda net: Habit(net, lambda x, _: x.cuda()),
    "integers": lambda net: Habit(net, lambda x, _: x.long()),
    "no gradient": lambda net: Habit(net, context=torch.no_grad),
    "inference": lambda net: Habit(net, context=torch.inference_mode),
    "reentrant": Checkpointed,
    "no backward": lambda net: Habit(net, lambda x, _: ByNumpy.apply(x)),
    "dropout": lambda net: Habit(net, lambda x, _: functional.dropout(x, 0.2)),
    "noise": lambda net: Habit(net, lambda x, _: x + torch.rand_like(x) / 8),
    "counting": lambda net: Habit(net, after=lambda z, calls: z if calls % 5 else z.flip(1)),
    "fails late": lambda net: Habit(net, _late),
    "exits": lambda net: Habit(net, _exit),
    "trains itself": TrainsItself,
    "two arguments": TwoArguments,
    "draws": Draws,
    "closes over": _closes_over,
    "half": lambda net: net.half(),
    "double": lambda net: Habit(net.double(), lambda x, _: x.double()),
    "bfloat16": lambda net: Habit(net.bfloat16(), lambda x, _: x.bfloat16()),
    "parallel": nn.DataParallel,
    "traced": lambda net: torch.jit.trace(net.eval(), torch.rand(4, 1, 8, 8)),
    "compiled": lambda net: torch.compile(net.eval(), backend="eager"),
    "lazy": lambda net: nn.Sequential(nn.Flatten(), nn.LazyLinear(64), net),
    "function": lambda net: net.forward,
    "pair": lambda net: (net, None),
    "class": type,
}


def make(habits=""):
    net = Means()
    for name in filter(None, habits.split("+")):
        net = HABITS[name](net)
    return net
