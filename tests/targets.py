"""Small networks in files, and how a test opens them as targets."""

import pytest
import torch

from robustbench_kd.checkpoints.architecture import build_network
from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.errors import RkdError

DIGITS = {"classes": 10, "shape": (1, 8, 8)}
SMALL = Choices(architecture="small_cnn", arguments={"width": 2})


def small():
    return build_network("small_cnn", {"width": 2}, **DIGITS).eval()


def save_weights(path, network=None, **extra):
    torch.save({**(network or small()).state_dict(), **extra}, path)
    return path


def open_one(text, choices=None, *, classes=10, shape=(1, 8, 8)):
    (target,) = describe(str(text), choices or Choices())
    return load(target, classes=classes, shape=shape)


def refusal(kind, call, *arguments, **named):
    """Returns the message of an expected error, which is always one line."""
    with pytest.raises(RkdError) as caught:
        call(*arguments, **named)
    assert caught.type is kind
    assert str(caught.value).isprintable()
    return str(caught.value)
