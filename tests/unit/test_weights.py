"""Weights files.

Hostile ones leave no trace, harmless metadata never stands in the way, and damage is told apart.
"""

import argparse
import collections
import contextlib
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
import warnings
import webbrowser
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_safetensors
from torch import nn

from robustbench_kd.checkpoints.weights import Inert, read_weights, sha256
from robustbench_kd.core.errors import CheckpointError

WEIGHTS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, 2.0])}
FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


class Pickled:
    """Its pickle is made of these parts; callable, so that calls can be chained."""

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


def torch_bytes(content, *, legacy=False, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy, **options)
    return buffer.getvalue()


def save(path, content, *, legacy=False):
    path.write_bytes(torch_bytes(content, legacy=legacy))
    return path


def save_opcodes(path, pickled):
    """A torch archive whose pickle is hand-written."""
    with (
        zipfile.ZipFile(io.BytesIO(torch_bytes(WEIGHTS))) as old,
        zipfile.ZipFile(path, "w") as archive,
    ):
        for name in old.namelist():
            archive.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return path


def refusal(path):
    """The message with which a file is refused.

    One line that names the file and holds no control character.
    """
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
    """BUILD with a state for slots sets attributes on whatever lies on the stack, here on a "
    "class."""
    opcodes = b"\x80\x02ctorch\nTensor\n(N}X\x04\x00\x00\x00evilK\x01stb."
    refusal(save_opcodes(tmp_path / "net.pt", opcodes))
    assert not hasattr(torch.Tensor, "evil")


def test_arrays_of_numpy_are_not_rebuilt(tmp_path):
    """With other flags in the dtype's state, an array made of the file's bytes crashes the
    interpreter."""
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
def test_harmless_metadata_does_not_stand_in_the_way_of_the_weights(kind, legacy, tmp_path):
    path = save(
        tmp_path / "net.pt", {"metadata": HARMLESS[kind], "state_dict": WEIGHTS}, legacy=legacy
    )
    assert same(read_weights(path).content["state_dict"])


def test_numpy_scalars_as_numpy_1_spelled_them_do_not_stand_in_the_way(tmp_path):
    content = torch_bytes({"best": np.float64(0.5), "state_dict": WEIGHTS}, legacy=True)
    path = tmp_path / "net.pt"
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert path.read_bytes() != content
    assert same(read_weights(path).content["state_dict"])


def test_weights_in_an_own_kind_of_dict_are_found(tmp_path):
    path = save(tmp_path / "net.pt", {"state_dict": EasyDict(**WEIGHTS)})
    assert same(read_weights(path).content["state_dict"])


def test_what_was_left_out_is_said_in_one_note(tmp_path):
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


def archive(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name in names:
            made.writestr(name, b"content")
    return buffer.getvalue()


def torchscript():
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), buffer)
    return buffer.getvalue()


ZIP = torch_bytes(WEIGHTS)
MODULE = nn.Sequential(nn.Linear(1, 1))
NOT_WEIGHTS = {
    "empty": (b"", "is empty: download it again"),
    "web page": (b"\n<!DOCTYPE html><html>", "is a web page, not weights"),
    "web page with byte order mark": (b"\xef\xbb\xbf<HTML>", "is a web page, not weights"),
    "error of a web store": (b"<?xml version='1.0'?><Error>", "is a web page, not weights"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run 'git lfs pull'"),
    "truncated zip": (ZIP[:700], "is a truncated or damaged archive"),
    "truncated legacy": (
        torch_bytes(WEIGHTS, legacy=True)[:300],
        "is not a whole torch checkpoint",
    ),
    "truncated safetensors": (to_safetensors(WEIGHTS)[:100], "is not a whole safetensors file"),
    "random": (bytes(range(7, 200)), "begins with b'\\x07\\x08"),
    "text": (
        b"hello world\n" * 9,
        "is neither safetensors nor a file of torch.save: it begins with b'hello world",
    ),
    "tar": (b"././@PaxHeader" + bytes(500), "unpack it if it is an archive"),
    "other zip": (
        archive("images/0.png"),
        "is a zip archive but no torch checkpoint: it holds images/0.png",
    ),
    "empty zip": (archive(), "it holds nothing"),
    "several disks": (ZIP[:-26] + b"\x07" + ZIP[-25:], "is a truncated or damaged archive"),
    "torchscript": (torchscript(), "is TorchScript, which carries code: save a state dict"),
    "exported program": (
        archive("net/archive_format", "net/models/model.json"),
        "is an exported program",
    ),
    "whole module, legacy": (
        torch_bytes(MODULE, legacy=True),
        "whole pickled module, which only code can rebuild",
    ),
    "plain pickle": (
        pickle.dumps(WEIGHTS, 2),
        "is a pickle that cannot be read without running it",
    ),
    "plain pickle of today": (
        pickle.dumps(WEIGHTS),
        "is a pickle that cannot be read without running it",
    ),
    "other protocol": (
        torch_bytes(WEIGHTS, pickle_protocol=4),
        "with torch.save, in the usual protocol",
    ),
}


@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_a_file_that_is_no_weights_is_called_what_it_is(kind, tmp_path):
    content, expected = NOT_WEIGHTS[kind]
    (tmp_path / "net.pt").write_bytes(content)
    assert expected in refusal(tmp_path / "net.pt")


def test_a_torch_file_named_safetensors_is_told_its_name(tmp_path):
    assert "name it .pth if torch.save wrote it" in refusal(
        save(tmp_path / "net.safetensors", WEIGHTS)
    )


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.bin"])
def test_safetensors_are_known_by_their_content(name, tmp_path):
    (tmp_path / name).write_bytes(to_safetensors(WEIGHTS))
    assert same(read_weights(tmp_path / name).content)


@pytest.mark.parametrize("read", [read_weights, sha256])
@pytest.mark.parametrize(
    ("name", "reason"), [("nothing.pt", "No such file"), (".", "Is a directory")]
)
def test_what_cannot_be_opened_is_said_with_the_reason(read, name, reason, tmp_path):
    with pytest.raises(CheckpointError, match=f"cannot read '.*': {reason}"):
        read(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_said_to_be_one(tmp_path):
    path = save(tmp_path / "net.pt", WEIGHTS)
    path.chmod(0)
    assert "Permission denied" in refusal(path)


WHOLE = {
    kind: torch_bytes({"state_dict": WEIGHTS}, legacy=kind == "legacy")
    for kind in ("zip", "legacy")
}
WHOLE["safetensors"] = to_safetensors(WEIGHTS)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(list(WHOLE)), data=st.data())
def test_a_damaged_file_loads_or_is_refused(kind, data, tmp_path):
    content = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "net.pt"
    path.write_bytes(
        content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content
    )
    with contextlib.suppress(CheckpointError):
        read_weights(path)
