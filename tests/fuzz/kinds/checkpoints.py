"""Files of torch.save in both forms: altered ones, and pickles that ask for much."""

import collections
import io

import torch
from hostile import PICKLES, entry, legacy, torch_zip
from mutations import changed

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.models.small_cnn import build

SHARE = 6
_STATE = build(classes=10, channels=1, size=8, width=2).state_dict()
_CONTENTS = (
    _STATE,
    {"state_dict": {f"module.{name}": value for name, value in _STATE.items()}, "epoch": 3},
    {"model": _STATE, "optimizer": {"state": {0: {"step": torch.ones(1)}}}, "names": {"a", "b"}},
    collections.OrderedDict(mean=torch.zeros(1), std=torch.ones(1), **_STATE),
)
_OPCODES = b"}]()0N.K\x01q\x00h\x00s\x85\x86\x87RbuaetQ\x88\x89\x81"


def _saved(random):
    buffer = io.BytesIO()
    new = random.random() < 0.5
    torch.save(random.choice(_CONTENTS), buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def _asking(random):
    pickled = entry(PICKLES[random.choice(list(PICKLES))])
    if random.random() < 0.5:
        pickled = changed(random, pickled)
    pieces = list(PICKLES.values())
    for _ in range(random.randrange(3)):
        pickled += random.choice(_OPCODES).to_bytes(1, "little") + entry(random.choice(pieces))
    return legacy(pickled) if random.random() < 0.5 else torch_zip(b"\x80\x02" + pickled + b".")


def attempt(random, folder):
    content = changed(random, _saved(random)) if random.random() < 0.6 else _asking(random)
    path = folder / "net.pt"
    path.write_bytes(content)
    architecture = random.choice(["small_cnn", "small_cnn", "resnet20"])
    arguments = (
        {"width": 2} if random.random() < 0.8 else {"width": random.choice([0, 10**5, 10**9])}
    )
    (target,) = describe(str(path), Choices(architecture=architecture, arguments=arguments))
    load(target, classes=10, shape=(1, 8, 8))
