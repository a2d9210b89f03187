"""Archives of images: altered ones, odd headers, odd arrays."""

import numpy as np
from hostile import ARRAYS, IMAGES, LABELS, NUMBERS, header, npy_header, npz, saved
from mutations import EDGES, changed

from robustbench_kd.datasets import open_dataset

SHARE = 3
_KINDS = ("|u1", "<f4", "<f8", ">i8", "<U4", "|O", "|V8", "|b1", "<c8", "<M8[s]", "|S0", "<f2")
_OTHERS = (
    np.zeros((4, 1, 8, 8), np.float32),
    np.full((4, 1, 8, 8), np.nan),
    np.zeros((4, 8, 8, 3), np.uint8),
    np.zeros((0, 8, 8), np.uint8),
    np.zeros(4),
    np.array(1),
    np.array(["a", "b", "c", "d"]),
    np.zeros((4, 8, 0), np.uint8),
)


def _member(random, usual, odd):
    kind = random.random()
    if kind < 0.3:
        return usual
    if kind < 0.5:
        return random.choice(list(odd.values()))
    if kind < 0.7:
        return random.choice(_OTHERS)
    if kind < 0.85:
        return changed(random, saved(usual))
    shape = tuple(random.choice(EDGES) for _ in range(random.randint(0, 4)))
    return npy_header(header(shape, random.choice(_KINDS)), bytes(random.choice([0, 8, 4096])))


def attempt(random, folder):
    path = folder / "data.npz"
    members = {
        "images": _member(random, IMAGES, ARRAYS),
        "labels": _member(random, LABELS, NUMBERS),
    }
    if random.random() < 0.3:
        members["classes"] = random.choice([np.array(10), np.array(2**62), np.array([]), b"x"])
    npz(path, **members)
    if random.random() < 0.3:
        path.write_bytes(changed(random, path.read_bytes()))
    open_dataset(f"npz:{path}", limit=random.choice([None, 2]))
