"""Random numbers that depend on names alone: seed, stream, example, restart, step, coordinate.

No generator and no order of calls is involved, so batch size, row order, sharding and resuming
cannot change a number. The generator is Philox-4x32-10, which encrypts a counter of four 32-bit
words under a key of two (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). Its
integers are the same bits on every device.
"""

import math
from typing import TypeAlias

import torch
from torch import Tensor

Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def uniform(  # noqa: PLR0917  # the names that key a number, in their order
    seed: int, stream: str, ids: Tensor, restart: Tensor, step: Tensor | int, size: int
) -> Tensor:
    """Returns numbers in [0, 1), float32 `(n, size)`, the same bits on every device.

    `ids` and `restart` are int64 `(n,)`, `step` int64 `(n,)` or one for all rows. A number is a
    multiple of 2^-24. Fewer numbers are a prefix of more. All numbers are keyed apart for ids below
    2^48, restarts below 2^16 and steps below 2^32.

    >>> uniform(0, "square", ids=torch.tensor([7]), restart=torch.tensor([0]), step=3, size=2).shape
    torch.Size([1, 2])
    """
    blocks = torch.arange(-(-size // 4), device=ids.device)
    row = ids[:, None]
    steps = step[:, None] if isinstance(step, Tensor) else torch.full_like(row, step)
    # An id is one word; what lies above it goes to the upper half of the word that counts restarts.
    restarts = (restart[:, None] + (row >> 32 << 16)) & _MASK
    words = torch.stack(philox((blocks, steps, restarts, row), _key(seed, stream)), dim=-1)
    return (words.flatten(1)[:, :size] >> 8).to(torch.float32) * 2**-24


def normal(  # noqa: PLR0917  # as for `uniform`
    seed: int, stream: str, ids: Tensor, restart: Tensor, step: Tensor | int, size: int
) -> Tensor:
    """Returns standard normal numbers, float32 `(n, size)`; the arguments are those of `uniform`.

    Finite, at most 5.8 in size (Box and Muller 1958, on pairs of uniform numbers). Logarithm, sine
    and cosine may differ between a CPU and a GPU in the last bit.
    """
    half = -(-size // 2)
    pairs = uniform(seed, stream, ids, restart, step, 2 * half).reshape(len(ids), half, 2)
    radius = (-2 * torch.log1p(-pairs[..., 0])).sqrt()
    angle = 2 * math.pi * pairs[..., 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)[:, :size]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Returns the four words of Philox-4x32-10 for four counter words and two key words.

    All tensors are int64 and hold 32 bits without a sign; the counter words are broadcast against
    each other.
    """
    first, second, third, fourth = counter
    for turn in range(_ROUNDS):
        low, high = (
            (word + turn * step) & _MASK for word, step in zip(key, _KEY_STEPS, strict=True)
        )
        # A product wraps around int64 but keeps its 64 bits; masking undoes the sign that the shift
        # drags along.
        left, right = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first, second = ((right >> 32) ^ second ^ low) & _MASK, right
        third, fourth = ((left >> 32) ^ fourth ^ high) & _MASK, left
    return first, second & _MASK, third, fourth & _MASK


def _key(seed: int, stream: str) -> tuple[int, int]:
    """Returns the 64-bit FNV-1a hash of both; a compiled function cannot hold `hashlib`."""
    key = 0xCBF29CE484222325
    for character in f"{seed}/{stream}":
        key = (key ^ ord(character)) * 0x100000001B3 % 2**64
    return key & _MASK, key >> 32
