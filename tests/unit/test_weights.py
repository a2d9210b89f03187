"""Weights files: hostile ones do nothing, harmless metadata is no obstacle, damage is named."""

import argparse
import collections
import ctypes
import datetime as dt
import functools
import importlib
import io
import operator
import os
import pathlib
import pickle
import runpy
import shutil
import subprocess
import timeit
import types
import webbrowser
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from weights_files import WEIGHTS, refusal, same, save, torch_bytes

from robustbench_kd.checkpoints.weights import Inert, read_weights
from robustbench_kd.core.errors import CheckpointError

FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


class Pickled:
    """An object whose pickle is made of these parts; callable, so that calls can be chained."""

    def __init__(self, *parts):
        self.parts = parts

    def __call__(self):
        raise AssertionError("only a pickle calls this")

    def __reduce__(self):
        return self.parts


def call(function, *arguments):
    return Pickled(function, arguments)


@dataclass
class Own:
    epoch: int = 3


@dataclass(slots=True)
class Slots:
    epoch: int = 3


class EasyDict(dict):
    """Like the package of this name: a dict whose entries are attributes too."""

    def __init__(self, **entries):
        super().__init__(entries)
        self.__dict__.update(entries)


def save_opcodes(path, pickled):
    """Writes a torch archive whose pickle is hand-written."""
    with (
        zipfile.ZipFile(io.BytesIO(torch_bytes(WEIGHTS))) as old,
        zipfile.ZipFile(path, "w") as archive,
    ):
        for name in old.namelist():
            archive.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return path


def script(marker):
    path = marker.with_name("script.py")
    path.write_text(f"open({str(marker)!r}, 'w').close()")
    return str(path)


def array(marker):
    path = marker.with_name("array.npy")
    np.save(path, np.array([call(os.mkdir, str(marker))], dtype=object), allow_pickle=True)
    return str(path)


PAYLOADS = {
    "os.system": lambda m: call(os.system, f"touch '{m}'"),
    "os.mkdir": lambda m: call(os.mkdir, str(m)),
    "subprocess": lambda m: call(subprocess.check_call, ["touch", str(m)]),
    "eval": lambda m: call(eval, f"open({str(m)!r}, 'w').close()"),
    "exec": lambda m: call(exec, f"open({str(m)!r}, 'w').close()"),
    "open": lambda m: call(call(getattr, call(open, str(m), "w"), "close")),
    "pathlib": lambda m: call(call(getattr, pathlib.Path, "touch"), m),
    "__import__": lambda m: call(call(getattr, call(__import__, "os"), "mkdir"), str(m)),
    "import_module": lambda m: call(
        call(getattr, call(importlib.import_module, "os"), "mkdir"), str(m)
    ),
    "methodcaller": lambda m: call(operator.methodcaller("mkdir"), m),
    "partial": lambda m: call(functools.partial(os.mkdir, str(m))),
    "runpy": lambda m: call(runpy.run_path, script(m)),
    "shutil": lambda m: call(shutil.copyfile, script(m), str(m)),
    "timeit": lambda m: call(
        timeit.timeit, f"open({str(m)!r}, 'w').close()", "pass", timeit.default_timer, 1
    ),
    "pickle.loads": lambda m: call(pickle.loads, pickle.dumps(call(os.mkdir, str(m)))),
    "numpy.load": lambda m: call(np.load, array(m), None, True),
    "numpy.memmap": lambda m: call(np.memmap, str(m), "uint8", "w+", 0, (1,)),
    "state setter": lambda m: Pickled(str, (str(m),), 0o777, None, None, os.mkdir),
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_each_hostile_payload_does_harm_when_it_is_unpickled_the_ordinary_way(payload, tmp_path):
    pickle.loads(pickle.dumps(PAYLOADS[payload](tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@FORMATS
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_hostile_payload_in_the_optimiser_state_leaves_no_trace(payload, legacy, tmp_path):
    content = {
        "state_dict": WEIGHTS,
        "optimizer": {"state": {0: [PAYLOADS[payload](tmp_path / "marker")]}},
    }
    message = refusal(save(tmp_path / "net.pt", content, legacy=legacy))
    assert "refused, nothing was executed; do not use this file" in message
    assert not (tmp_path / "marker").exists()


@FORMATS
@pytest.mark.parametrize(
    "name", ["net.ckpt", "net.model", "net.th", "net.bin", "net.pth.tar", "net", "net.safetensors"]
)
def test_a_hostile_pickle_leaves_no_trace_under_any_name(name, legacy, tmp_path):
    refusal(save(tmp_path / name, call(os.mkdir, str(tmp_path / "marker")), legacy=legacy))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_plain_pickle_of_any_protocol_leaves_no_trace(protocol, tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps(call(os.mkdir, str(tmp_path / "marker")), protocol))
    refusal(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (webbrowser.open, "webbrowser.open"),
        (torch.load, "torch.serialization.load"),
        (ctypes.CDLL, "ctypes.CDLL"),
    ],
)
def test_the_refusal_names_what_the_file_wants_to_run(function, name, tmp_path):
    assert f"wants to run {name} when loaded" in refusal(
        save(tmp_path / "net.pt", call(function, "argument"))
    )


def test_a_pickle_cannot_change_a_class_of_torch(tmp_path):
    """BUILD with a state for slots sets attributes of what is on the stack, here of a class."""
    opcodes = b"\x80\x02ctorch\nTensor\n(N}X\x04\x00\x00\x00evilK\x01stb."
    refusal(save_opcodes(tmp_path / "net.pt", opcodes))
    assert not hasattr(torch.Tensor, "evil")


def test_arrays_of_numpy_are_not_rebuilt(tmp_path):
    """With other flags in the dtype's state, an array of the file's bytes crashes Python."""
    kind, shape, state = np.dtype([("object", "O")]).__reduce__()
    state = (1, (4,), Pickled(kind, shape, (*state[:-1], 0)), False, b"A" * 32)
    forged = Pickled(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state)
    content = read_weights(save(tmp_path / "net.pt", {**WEIGHTS, "best": forged})).content
    assert isinstance(content["best"], Inert)


def test_control_characters_in_a_name_do_not_reach_the_terminal(tmp_path):
    refusal(save_opcodes(tmp_path / "net.pt", b"\x80\x02cevil\n\x1b[2JName\n."))


HARMLESS = {
    "Namespace": argparse.Namespace(lr=0.1, data=pathlib.Path("data")),
    "path": pathlib.PureWindowsPath("c:/data"),
    "numpy scalar": [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)],
    "numpy array": [np.arange(3.0), np.array(["a"]), np.array([None], dtype=object)],
    "numpy generator": np.random.default_rng(0),
    "random state": np.random.RandomState(0).get_state(),
    "defaultdict": collections.defaultdict(list, losses=[1.0]),
    "deque": collections.deque([1.0], maxlen=10),
    "SimpleNamespace": types.SimpleNamespace(epoch=3),
    "own class": Own(),
    "own class with slots": Slots(),
    "own kind of dict": EasyDict(lr=0.1),
    "OrderedDict": nn.BatchNorm2d(2).state_dict(),
    "torch": [
        torch.device("cuda:0"),
        torch.float16,
        torch.Size([1]),
        torch.Generator().get_state(),
    ],
    "date": [dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.date(2024, 1, 1), dt.timedelta(1)],
    "optimiser": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1),
    "partial": functools.partial(Own),
    "plain": [
        range(3),
        slice(1),
        {1},
        frozenset({1}),
        1j,
        b"bytes",
        bytearray(b"b"),
        int,
        10**30,
        "text\n",
        None,
    ],
}


@FORMATS
@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_metadata_does_not_prevent_loading(kind, legacy, tmp_path):
    path = save(
        tmp_path / "net.pt", {"metadata": HARMLESS[kind], "state_dict": WEIGHTS}, legacy=legacy
    )
    assert same(read_weights(path).content["state_dict"])


def test_numpy_scalars_as_numpy_1_spelled_them_do_not_prevent_loading(tmp_path):
    content = torch_bytes({"best": np.float64(0.5), "state_dict": WEIGHTS}, legacy=True)
    path = tmp_path / "net.pt"
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert path.read_bytes() != content
    assert same(read_weights(path).content["state_dict"])


def test_weights_in_an_own_kind_of_dict_are_found(tmp_path):
    path = save(tmp_path / "net.pt", {"state_dict": EasyDict(**WEIGHTS)})
    assert same(read_weights(path).content["state_dict"])


def test_one_note_names_what_was_left_out(tmp_path):
    kinds = [Own(), Slots(), argparse.Namespace(), pathlib.PurePosixPath("a")]
    notes = read_weights(save(tmp_path / "net.pt", {**WEIGHTS, "metadata": kinds})).notes
    assert len(notes) == 1
    assert notes[0].startswith("left out what is no tensor: ")
    assert notes[0].endswith("Own, " + Slots.__module__ + ".Slots, argparse.Namespace, ...")


def test_plain_weights_load_without_a_note(tmp_path):
    assert read_weights(save(tmp_path / "net.pt", WEIGHTS)).notes == ()


def test_a_file_of_endless_classes_is_given_up(tmp_path):
    opcodes = b"".join(b"cmodule\nClass%d\n" % number for number in range(250))
    assert "more than 200 unknown classes" in refusal(
        save_opcodes(tmp_path / "net.pt", b"\x80\x02" + opcodes + b"N.")
    )


@pytest.mark.parametrize(("name", "saved"), [("w.npz", np.savez), ("w.npy", np.save)])
def test_files_of_numpy_get_a_recipe(name, saved, tmp_path):
    path = tmp_path / name
    saved(path, np.zeros(3))
    with pytest.raises(CheckpointError, match=r"holds numpy arrays, .*torch\.from_numpy"):
        read_weights(path)
