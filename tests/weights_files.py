"""Files of torch.save, and what the reader makes of them."""

import io

import pytest
import torch

from robustbench_kd.checkpoints.weights import read_weights
from robustbench_kd.core.errors import CheckpointError

WEIGHTS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, 2.0])}


def torch_bytes(content, *, legacy=False, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy, **options)
    return buffer.getvalue()


def save(path, content, *, legacy=False):
    path.write_bytes(torch_bytes(content, legacy=legacy))
    return path


def refusal(path):
    """Returns the message with which a file is refused: one printable line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    return message


def same(loaded, expected=WEIGHTS):
    return loaded.keys() == expected.keys() and all(
        torch.equal(loaded[name], expected[name]) for name in expected
    )
