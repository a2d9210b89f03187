"""Files that hold no weights, or only a part: an error says what they are instead."""

import contextlib
import io
import os
import pickle
import warnings
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_safetensors
from torch import nn
from weights_files import WEIGHTS, refusal, same, save, torch_bytes

from robustbench_kd.checkpoints.weights import read_weights, sha256
from robustbench_kd.core.errors import CheckpointError


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
def test_an_error_says_what_the_file_is_instead(kind, tmp_path):
    content, expected = NOT_WEIGHTS[kind]
    (tmp_path / "net.pt").write_bytes(content)
    assert expected in refusal(tmp_path / "net.pt")


def test_a_torch_file_named_safetensors_should_be_renamed(tmp_path):
    assert "name it .pth if torch.save wrote it" in refusal(
        save(tmp_path / "net.safetensors", WEIGHTS)
    )


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.bin"])
def test_safetensors_are_recognised_by_their_content(name, tmp_path):
    (tmp_path / name).write_bytes(to_safetensors(WEIGHTS))
    assert same(read_weights(tmp_path / name).content)


@pytest.mark.parametrize("read", [read_weights, sha256])
@pytest.mark.parametrize(
    ("name", "reason"), [("nothing.pt", "No such file"), (".", "Is a directory")]
)
def test_a_file_that_cannot_be_opened_is_reported_with_the_reason(read, name, reason, tmp_path):
    with pytest.raises(CheckpointError, match=f"cannot read '.*': {reason}"):
        read(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_reported_as_one(tmp_path):
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
