"""Files that would grow without bound or wait for ever are refused at once, in one line."""

import io
import json
import zipfile

import numpy as np
import pytest
import tomli_w
import torch
from fake_boards import leaderboard, run
from hostile import (
    ARRAYS,
    CARD,
    IMAGES,
    LABELS,
    NUMBERS,
    PICKLES,
    TOMLS,
    bomb,
    call,
    entry,
    expanded,
    header,
    legacy,
    npy_header,
    npz,
    special_files,
    statistics,
    torch_zip,
    weights_pickle,
)
from limits import ending, refusal

from robustbench_kd.analysis.formats import csv
from robustbench_kd.checkpoints.card import read_card
from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.checkpoints.weights import read_weights, sha256
from robustbench_kd.datasets import open_dataset
from robustbench_kd.models.small_cnn import build


def survives(call, *arguments, **named):
    """Accepts a call that ends in time, whether it refuses or not."""
    said = ending(call, *arguments, **named)
    assert said == "done" or said.startswith("refused: "), said


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def loaded(text, **choices):
    (target,) = describe(str(text), Choices(**choices))
    return load(target, classes=10, shape=(1, 8, 8))


# Weights


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_that_builds_much_is_refused_before_it_builds(kind, form, tmp_path):
    content = weights_pickle(kind) if form == "zip" else legacy(entry(PICKLES[kind]))
    survives(read_weights, written(tmp_path / "net.pt", content))


def sets(levels, place):
    """A frozen set of one and of a tuple of it, within another one, and so on: 2 ** levels texts.

    All lie in one tuple; the last has a place in the memo. The hash of a set is kept.
    """
    put, get = b"q" + bytes([place]), b"h" + bytes([place])
    content = b"(" + call("builtins.frozenset", b"](K\x01e") + put
    for _ in range(levels):
        content += call("builtins.frozenset", b"](" + get + get + b"\x85e") + put
    return content + b"t"


def test_a_name_whose_text_has_no_end_is_not_written_out(tmp_path):
    pickled = b"\x80\x02" + entry(sets(60, 0)) + b"h\x00K\x01s."
    path = written(tmp_path / "net.pt", torch_zip(pickled))
    assert "more than 10,000,000 others" in refusal(loaded, path, architecture="small_cnn")


def test_two_sets_of_sets_are_not_compared_without_end(tmp_path):
    names = b"h\x00K\x01sh\x01K\x01s."
    pickled = b"\x80\x02" + entry(b"(" + sets(60, 0) + sets(60, 1) + b"t") + names
    path = written(tmp_path / "net.pt", torch_zip(pickled))
    assert "more than 10,000,000 others" in refusal(loaded, path, architecture="small_cnn")


def test_lists_of_lists_are_visited_once(tmp_path):
    """Each list is filled before the one inside of it, so that none seems to be large."""
    empty = b"".join(b"]q" + bytes([level]) for level in range(12))
    filled = b""
    for level in range(11):
        inside = b"h" + bytes([level + 1])
        filled += b"h" + bytes([level]) + b"(" + inside * 100 + b"e"
    state = entry(b"(" + empty + filled + b"t", b"lists")
    state += b"X\x06\x00\x00\x00weight" + expanded(1) + b"s"
    state += b"X\x0f\x00\x00\x00bn._extra_stateh\x00s"
    path = written(tmp_path / "net.pt", torch_zip(b"\x80\x02" + state + b"."))
    said = refusal(loaded, path, architecture="small_cnn")
    assert "does not fit the architecture" in said


def test_a_zip_bomb_is_refused_by_its_list_of_contents(tmp_path):
    assert "unpack" in refusal(read_weights, bomb(tmp_path / "net.pt", 2**30))


def test_a_storage_larger_than_its_file_is_refused(tmp_path):
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        b"\x8a\x08" + (2**40).to_bytes(8, "little") + b"NtQ"
    )
    refusal(read_weights, written(tmp_path / "net.pt", legacy(entry(storage))))


@pytest.mark.parametrize("call", [read_weights, sha256])
def test_weights_are_read_from_regular_files_alone(call, tmp_path):
    for path in special_files(tmp_path):
        assert "regular file" in refusal(call, path)


def test_statistics_of_many_values_are_no_normalisation(tmp_path):
    content = {**statistics(2**28), "weight": torch.ones(1)}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path = written(tmp_path / "net.pt", buffer.getvalue())
    refusal(loaded, path, architecture="small_cnn")


def test_a_compressed_checkpoint_is_read(tmp_path):
    pickled = b"\x80\x02}."
    made = torch_zip(pickled, data=bytes(2**20), compressed=True)
    assert read_weights(written(tmp_path / "net.pt", made)).content == {}


# Networks


@pytest.mark.parametrize(
    "argument",
    ["width=1000000000", "width=100000", "classes=100000000", "channels=10000000", "width=-1"],
)
def test_a_network_larger_than_its_file_is_not_built(argument, tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"weight": torch.ones(3)}, path)
    name, _, value = argument.partition("=")
    refusal(loaded, path, architecture="small_cnn", arguments={name: int(value)})


@pytest.mark.parametrize("depth", [6 * 10**9 + 2, 6 * 10**5 + 2])
def test_a_network_of_endless_depth_is_not_built(depth, tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"weight": torch.ones(3)}, path)
    refusal(loaded, path, architecture="resnet20", arguments={"depth": depth})


# Cards


def card_file(folder, name="net", **fields):
    return written(folder / f"{name}.toml", tomli_w.dumps({**CARD, **fields}))


@pytest.mark.parametrize("kind", TOMLS)
def test_a_card_of_any_text_is_refused(kind, tmp_path):
    refusal(read_card, written(tmp_path / "net.toml", TOMLS[kind]))


@pytest.mark.parametrize(
    "fields",
    [
        {"normalisation": {"mean": [0.5] * 200_000, "std": [0.5]}},
        {"normalisation": {"mean": [0.5] * 100_000, "std": [0.5] * 100_000}},
        {"image_shape": [3, 10**9, 10**9]},
        {"classes": 10**12},
        {"class_names": ["a"] * 200_000},
        {"threats": ["linf:" + "9" * 100_000]},
        {"threats": ["linf:" + "9" * 5_000 + "/" + "9" * 5_000]},
        {"weights": {"file": "n" * 100_000, "sha256": "0" * 64}},
    ],
)
def test_a_card_of_large_values_is_refused(fields, tmp_path):
    refusal(read_card, card_file(tmp_path, **fields))


def family(folder, name, parts):
    fields = {key: CARD[key] for key in ("classes", "image_shape", "dataset")}
    content = {**fields, "name": name, "family": "ensemble", "parts": parts}
    return written(folder / f"{name}.toml", tomli_w.dumps(content))


@pytest.mark.parametrize("arguments", [{"depth": 10**7}, {"width": 3_000}])
def test_a_front_end_larger_than_any_is_not_built(arguments, tmp_path):
    torch.save(build(classes=10, channels=1, size=8, width=2).state_dict(), tmp_path / "part.pt")
    own = {"file": "part.pt", "sha256": sha256(tmp_path / "part.pt")}
    card_file(
        tmp_path,
        "part",
        architecture={"name": "small_cnn", "arguments": {"width": 2}},
        weights=own,
    )
    fields = {key: CARD[key] for key in ("name", "classes", "image_shape", "dataset")}
    fields |= {"family": "frontend", "parts": ["part.toml"], "arguments": arguments}
    path = written(tmp_path / "net.toml", tomli_w.dumps({**fields, "weights": own}))
    assert "the network would have more than" in refusal(loaded, path)


def test_parts_of_parts_of_parts_are_counted(tmp_path):
    card_file(tmp_path, "part0")
    for level in range(1, 13):
        path = family(tmp_path, f"part{level}", [f"part{level - 1}.toml"] * 10)
    assert "parts" in refusal(describe, str(path), Choices())


def test_a_chain_of_parts_is_of_limited_depth(tmp_path):
    card_file(tmp_path, "part0")
    for level in range(1, 2001):
        path = family(tmp_path, f"part{level}", [f"part{level - 1}.toml"] * 2)
    assert "parts" in refusal(describe, str(path), Choices())


def test_a_card_of_a_hundred_thousand_parts_is_refused(tmp_path):
    card_file(tmp_path, "part0")
    path = family(tmp_path, "many", ["part0.toml"] * 40_000)
    refusal(describe, str(path), Choices())


def test_cards_are_read_from_regular_files_alone(tmp_path):
    for path in special_files(tmp_path):
        assert "regular file" in refusal(read_card, path)


# Images


@pytest.mark.parametrize("kind", ARRAYS)
def test_images_in_a_damaged_array_are_refused(kind, tmp_path):
    path = npz(tmp_path / "data.npz", images=ARRAYS[kind], labels=LABELS)
    refusal(open_dataset, f"npz:{path}")


@pytest.mark.parametrize("kind", NUMBERS)
def test_labels_that_are_none_are_refused(kind, tmp_path):
    path = npz(tmp_path / "data.npz", images=IMAGES, labels=NUMBERS[kind])
    refusal(open_dataset, f"npz:{path}")


def test_no_images_and_no_labels_are_refused(tmp_path):
    path = npz(tmp_path / "data.npz", images=IMAGES[:0], labels=LABELS[:0])
    assert "at least one image" in refusal(open_dataset, f"npz:{path}")


def test_images_are_read_from_regular_files_alone(tmp_path):
    for path in special_files(tmp_path):
        assert "expected an npz file" in refusal(open_dataset, f"npz:{path}")


def test_images_that_grow_a_thousandfold_are_refused(tmp_path):
    """As bytes they take 900 MB, as floats four times as much."""
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        labels = io.BytesIO()
        np.save(labels, np.zeros(900, np.int64))
        made.writestr("labels.npy", labels.getvalue())
        with made.open("images.npy", "w") as file:
            file.write(npy_header(header((900, 1000, 1000)), b""))
            for _ in range(900):
                file.write(bytes(10**6))
    assert "does not compress" in refusal(open_dataset, f"npz:{path}")


# What is written


def test_a_shard_of_a_name_that_no_file_can_have_is_refused(tmp_path):
    text = json.dumps({"weight_map": {"a": "n" * 5000}})
    path = written(tmp_path / "net.pt.index.json", text)
    assert "is no index of weights" in refusal(read_weights, path)


@pytest.mark.parametrize("field", ["suite", "engine", "eps_text", "mode", "model"])
def test_a_table_in_csv_has_no_control_characters(field):
    table = csv.render(leaderboard(run(**{field: "\x1b[31m\u202e\x9b"})))
    assert all(letter.isprintable() for letter in table.replace("\n", ""))
