"""A small network, random state dicts for it, and what loading them gives."""

import pytest
import torch
from torch import nn

from robustbench_kd.checkpoints.state import find_state, load_state
from robustbench_kd.core.errors import CheckpointError

STATISTICS = {"mean": torch.tensor([0.5, 0.25, 0.125]), "std": torch.tensor([0.25, 0.5, 1.0])}


class Net(nn.Module):
    """A convolution, batch normalisation and a linear layer."""

    def __init__(self, *, channels=3, width=4, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)


class Model(nn.Module):
    def __init__(self, network=None):
        super().__init__()
        self.model = network or Net()


class Normalised(Net):
    """A network that holds its statistics itself."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))


def weights(network=None):
    """Returns a state dict of random numbers, in which no two tensors of a shape are equal."""
    expected = (network or Net()).state_dict()
    return {name: torch.rand(value.shape).to(value.dtype) for name, value in expected.items()}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def find(content, key=""):
    return find_state(content, key, source="net.pt")


def load(content, network=None, key=""):
    """Loads content into a network; returns the network, the normalisation and the notes."""
    network = network or Net()
    normalisation, notes = load_state(network, find(content, key))
    return network, normalisation, notes


def holds(network, state):
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def refusal(content, network=None, key=""):
    """Returns the message with which content is refused: one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        load(content, network, key)
    message = str(caught.value)
    assert message.startswith("'net.pt'")
    assert message.isprintable()
    return message
