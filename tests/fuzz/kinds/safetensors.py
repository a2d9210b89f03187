"""Files of safetensors as weights and as the images of a run."""

import json

import numpy as np
from hostile import safetensors
from mutations import changed, value, with_other_values
from safetensors.torch import save

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.models.small_cnn import build
from robustbench_kd.tensors import hashed_file, stored_images

SHARE = 3
_STATE = build(classes=10, channels=1, size=8, width=2).state_dict()
_WEIGHTS = save(_STATE)
_ONES = np.zeros(2, np.int64)
_PIXELS = np.zeros((2, 1, 8, 8), np.float32)


def _images(path):
    stored = stored_images.StoredImages(
        "run", "linf:0.1", np.arange(2), _ONES, _ONES, _PIXELS, _PIXELS
    )
    stored_images.write(path, stored)
    return path.read_bytes()


def _header_changed(random, content):
    length = int.from_bytes(content[:8], "little")
    header = with_other_values(random, json.loads(content[8 : 8 + length]))
    if random.random() < 0.2:
        header = value(random)
    return safetensors(header, content[8 + length :])


def attempt(random, folder):
    path = folder / "net.safetensors"
    is_weights = random.random() < 0.6
    content = _WEIGHTS if is_weights else _images(path)
    change = changed if random.random() < 0.5 else _header_changed
    path.write_bytes(change(random, content))
    if is_weights:
        (target,) = describe(str(path), Choices(architecture="small_cnn", arguments={"width": 2}))
        load(target, classes=10, shape=(1, 8, 8))
    elif random.random() < 0.5:
        stored_images.read(path, most=random.choice([None, 1]))
    else:
        hashed_file.read(path)
