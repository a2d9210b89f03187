"""Small files that ask for much memory, or for no end, are refused before they get any."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from hostile import call, header, npy_header, npz, number, torch_zip
from torch.nn import Module

from robustbench_kd.checkpoints.architecture import build_network
from robustbench_kd.checkpoints.card import read_card
from robustbench_kd.checkpoints.state import find_state
from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe
from robustbench_kd.checkpoints.weights import read_weights
from robustbench_kd.core.errors import CheckpointError, DatasetError, UsageError
from robustbench_kd.core.received import MOST_BYTES, parse_toml
from robustbench_kd.core.text import shortened
from robustbench_kd.datasets import open_dataset

MANY = 10**7  # as much as a file may name without harm, should a check be missing
START = b"\x80\x02"


def archive(path, content, **options):
    path.write_bytes(torch_zip(content, **options))
    return path


LONG = b"]q\x00(" + b"".join(b"M" + struct.pack("<H", i) for i in range(50_000)) + b"e"
GROWING = {
    "bytearray of a number": call("builtins.bytearray", number(MANY)),
    "bytes of a number": call("builtins.bytes", number(MANY)),
    "a tensor of a size": call("torch.FloatTensor", number(MANY)),
    "a storage of a size": call("torch.storage.UntypedStorage", number(MANY)),
    "copies of a list": LONG + b"]q\x01(" + call("builtins.frozenset", b"h\x00") * 1000 + b"e",
    "a name without end": call("m" * 100_000 + "." + "n" * 100_000),
    "a set of a text again and again": LONG
    + b"]q\x01("
    + call("builtins.set", b"h\x00") * 1000
    + b"e",
}


@pytest.mark.parametrize("content", GROWING.values(), ids=GROWING)
def test_a_pickle_that_asks_for_more_than_it_holds_is_refused(content, tmp_path):
    path = archive(tmp_path / "net.pt", START + content + b".")
    with pytest.raises(CheckpointError, match="asks for more memory than it holds"):
        read_weights(path)


def test_a_range_is_not_filled(tmp_path):
    content = START + call("builtins.list", call("builtins.range", number(10**12))) + b"."
    assert read_weights(archive(tmp_path / "net.pt", content)).content == []


def test_what_torch_may_call_is_put_back(tmp_path):
    before = torch._weights_only_unpickler._get_allowed_globals()
    with pytest.raises(CheckpointError):
        read_weights(archive(tmp_path / "net.pt", START + GROWING["bytes of a number"] + b"."))
    assert torch._weights_only_unpickler._get_allowed_globals() is before


def test_an_archive_that_was_compressed_is_refused(tmp_path):
    empty = pickle.dumps({}, 2)
    path = archive(tmp_path / "net.pt", empty, data=bytes(2**22), compressed=True)
    with pytest.raises(CheckpointError, match=r"4,1.*when unpacked; torch\.save does not compress"):
        read_weights(path)


def test_numbers_that_are_repeated_without_end_are_refused():
    content = {"mean": torch.zeros(1).expand(2**30), "weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"'mean' repeats a few numbers to 1,073,741,824"):
        find_state(content, source="net.pt")


# Files that are none


READERS = {
    "net.pt": read_weights,
    "net.toml": read_card,
    "net.pt.index.json": read_weights,
    "net.npz": lambda path: open_dataset(f"npz:{path}"),
}


@pytest.mark.parametrize(("file", "reader"), READERS.items(), ids=READERS)
def test_a_pipe_is_no_file(file, reader, tmp_path):
    os.mkfifo(tmp_path / file)
    with pytest.raises((CheckpointError, DatasetError), match=file):
        reader(tmp_path / file)


@pytest.mark.parametrize("target", ["card.toml", "net.pt"])
def test_an_endless_device_is_no_file(target, tmp_path):
    (tmp_path / target).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError):
        describe(str(tmp_path / target), Choices())


# Cards

PLAIN = {
    "classes": "10",
    "image_shape": "[1, 8, 8]",
    "dataset": '"digits"',
}


def card(folder, stem="net", *, before="", **fields):
    lines = {"name": f'"{stem}"', **PLAIN, **fields}
    text = before + "\n".join(f"{key} = {value}" for key, value in lines.items())
    (folder / f"{stem}.toml").write_text(text)
    return folder / f"{stem}.toml"


def ensemble(folder, stem, parts):
    return card(folder, stem, family='"ensemble"', parts=json.dumps(parts))


UNREADABLE = {
    "a number of many digits": ("x = " + "9" * 5000 + "\n", "is not TOML"),
    "many brackets": ("x = " + "[" * 10_000 + "]" * 10_000 + "\n", "nested too deep"),
    "a dotted key": (".".join("a" * 5000) + " = 1\n", "nested too deep"),
    "a dotted key in quotes": ('"a" . ' * 5000 + "a = 1\n", "nested too deep"),
    "a dotted key in a table": ("x = { " + ".".join("a" * 5000) + " = 1 }\n", "nested too deep"),
    "many bytes": ("#" * MOST_BYTES + "\n", "expected at most 1,048,576"),
    "no text": ("x = '\x00'\n", "is not TOML"),
}


@pytest.mark.parametrize(("before", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_card_that_cannot_be_parsed_in_reason_is_refused(before, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as caught:
        read_card(card(tmp_path, before=before))
    assert len(str(caught.value)) < 300


def test_a_search_for_dotted_keys_takes_no_time_on_long_words():
    words = "x = '" + "a" * MOST_BYTES + "'"
    assert len(parse_toml(words, "text", UsageError)["x"]) == MOST_BYTES


def test_a_long_name_and_long_statistics_are_refused_in_short(tmp_path):
    with pytest.raises(CheckpointError, match="at most 200 characters"):
        read_card(card(tmp_path, name='"' + "n" * 10_000 + '"'))
    values = f"{{ mean = [{'0.5,' * 10_000}], std = [1.0] }}"
    with pytest.raises(CheckpointError, match=r"got 0\.5,.* \.\.\. ") as caught:
        read_card(card(tmp_path, normalisation=values))
    assert len(str(caught.value)) < 300


def test_cards_within_each_other_end(tmp_path):
    for depth in range(30):
        ensemble(tmp_path, f"net{depth}", [f"net{depth + 1}.toml"])
    with pytest.raises(CheckpointError, match="16th within another"):
        describe(str(tmp_path / "net0.toml"), Choices())


def test_a_few_cards_cannot_name_thousands_of_parts(tmp_path):
    weights = f'{{ file = "leaf.pt", sha256 = "{"0" * 64}" }}'
    card(tmp_path, "net9", architecture='{ name = "small_cnn" }', weights=weights)
    for depth in range(9):
        ensemble(tmp_path, f"net{depth}", [f"net{depth + 1}.toml"] * 10)
    with pytest.raises(CheckpointError, match="more than 256 parts"):
        describe(str(tmp_path / "net0.toml"), Choices())


# Networks


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("small_cnn", {"width": 10**9}),
        ("small_cnn", {"width": 30_000}),
        ("wide_resnet_28_10", {"depth": 6 * 10**8 + 4}),
        ("vit_tiny", {"depth": 10**9}),
        ("vit_tiny", {"size": 2**60 + 1}),
        ("small_cnn", {"classes": 10**12}),
    ],
)
def test_a_network_of_any_size_is_not_built(architecture, arguments):
    with pytest.raises(UsageError, match=r"choose smaller arguments|cannot be built"):
        build_network(architecture, arguments, classes=10, shape=(3, 32, 32), most=2**24)


def test_a_network_is_built_once_with_the_random_numbers_that_it_had():
    torch.manual_seed(0)
    one = build_network("small_cnn", {"width": 2}, classes=10, shape=(1, 8, 8))
    torch.manual_seed(0)
    from robustbench_kd.models import small_cnn

    other = small_cnn.build(width=2, classes=10, channels=1, size=8)
    for mine, plain in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, plain)
    assert isinstance(one, Module)


# Data


CLAIMS = {
    "more than there is": header("(100000000000, 32, 32, 3)"),
    "more than any machine counts": header("(10000000000000000000000, 32, 32, 3)"),
    "an open bracket": header("(1, 32, 32, 3"),
    "brackets": header("(" * 5000),
    "an open text": header("(1, '''"),
}


@pytest.mark.parametrize("images", CLAIMS.values(), ids=CLAIMS)
def test_a_damaged_header_of_an_array_is_named(images, tmp_path):
    labels = np.zeros(1, dtype=np.int64)
    path = npz(tmp_path / "mine.npz", images=npy_header(images, b""), labels=labels)
    with pytest.raises(DatasetError, match="damaged") as caught:
        open_dataset(f"npz:{path}")
    assert len(str(caught.value)) < 400


def test_arrays_that_grow_a_hundredfold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("robustbench_kd.datasets.npz._LITTLE", 2**20)
    images = np.zeros((1000, 32, 32, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "mine.npz", images=images, labels=np.arange(1000) % 10)
    with pytest.raises(DatasetError, match="which does not compress"):
        open_dataset(f"npz:{tmp_path / 'mine.npz'}")
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(1000) % 10)
    assert len(open_dataset(f"npz:{tmp_path / 'mine.npz'}")) == 1000


# Lines of errors


def test_a_long_line_keeps_its_beginning_and_its_end():
    text = "expected this" + "x" * 600_000 + "do that"
    assert len(shortened(text)) == 300
    assert shortened(text).startswith("expected this")
    assert shortened(text).endswith("do that")
    assert shortened("x" * 300) == "x" * 300
