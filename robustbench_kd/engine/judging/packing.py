"""Images as text, for the ledger: the exact float32 values in base64."""

import base64

import numpy as np
import torch
from torch import Tensor

from robustbench_kd.tensors.contracts import Images


def packed(image: Tensor) -> str:
    """Returns one image as text."""
    return base64.b64encode(image.detach().cpu().numpy().astype("<f4").tobytes()).decode()


def unpacked(texts: list[str], shape: tuple[int, ...]) -> Images:
    """Returns images `(n, *shape)` from texts.

    >>> unpacked([packed(torch.ones(1, 2, 2))], (1, 2, 2)).shape
    torch.Size([1, 1, 2, 2])
    """
    pixels = np.frombuffer(b"".join(map(base64.b64decode, texts)), dtype="<f4")
    return torch.from_numpy(pixels.astype(np.float32)).view(-1, *shape)
