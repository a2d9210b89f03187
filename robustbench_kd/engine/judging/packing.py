"""Images as text, for the ledger: the exact float32 values in base64."""

import base64
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from robustbench_kd.tensors.contracts import Images


def pack(image: Tensor) -> str:
    """Returns one image as text."""
    pixels = image.detach().cpu().numpy().astype("<f4")
    return base64.b64encode(pixels.tobytes()).decode()


def unpack(texts: Sequence[str], shape: tuple[int, ...]) -> Images:
    """Returns images `(n, *shape)` from texts.

    >>> unpack([pack(torch.ones(1, 2, 2))], (1, 2, 2)).shape
    torch.Size([1, 1, 2, 2])
    """
    content = b"".join(base64.b64decode(text) for text in texts)
    pixels = np.frombuffer(content, dtype="<f4").astype(np.float32)
    return torch.from_numpy(pixels).view(-1, *shape)
