"""The ensemble of the curious case as a person would bring it: plain modules, nothing declared.

rkd eval benchmarks/undeclared.py:ensemble --dataset digits --examples 40 --threat linf:0.15 \\
        --suite adaptive --no-probes
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from broken import digits  # the shipped networks
from maskings import MemberPerImage  # draws a member for each image


class Plain(nn.Module):
    """A network that shows nothing of what is in it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits of the network."""
        logits: torch.Tensor = self.network(images)
        return logits


def ensemble() -> nn.Module:
    """Returns five front ends, one of which is drawn for each image."""
    return MemberPerImage([Plain(digits(f"front-{number}")) for number in range(5)]).eval()


def frontend() -> nn.Module:
    """Returns the single front end."""
    return Plain(digits("frontend-plain")).eval()
