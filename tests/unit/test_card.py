"""Cards: what is written is read back, and what is wrong is named by file and field.

Normalisations by name or number.
"""

import datetime as dt
import os
import stat

import pytest
import tomli_w
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from robustbench_kd.checkpoints.architecture import build_network
from robustbench_kd.checkpoints.card import (
    Architecture,
    Card,
    ClaimedNumber,
    Normalisation,
    Weights,
    is_file_name,
    read_card,
    write_card,
)
from robustbench_kd.checkpoints.convert import write_weights
from robustbench_kd.checkpoints.normalisation import PRESETS, parse_normalisation
from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.checkpoints.weights import sha256
from robustbench_kd.cli import main
from robustbench_kd.core.errors import CheckpointError, RecordError, UsageError

SHA256 = "0123456789abcdef" * 4
PLAIN = {
    "name": "net",
    "classes": 10,
    "image_shape": [1, 8, 8],
    "dataset": "digits",
    "architecture": {"name": "small_cnn"},
    "weights": {"file": "net.safetensors", "sha256": SHA256},
}


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else tomli_w.dumps(content).encode())
    return path


def refusal(path):
    """The message with which a card is refused: one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_card(path)
    message = str(caught.value)
    assert message.startswith((f"card '{path}'", f"cannot read card '{path}'"))
    assert message.isprintable()
    return message


# Round trip

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = st.one_of(
    TEXT,
    st.sampled_from(
        ['"quoted"', "two\nlines", "\\back\r\n", "naïve 模型", "''' \"\"\"", "\t\x7f", "= #"]
    ),
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), NUMBERS, NAMES, st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)
STATISTICS = st.integers(1, 4).flatmap(
    lambda channels: st.builds(
        Normalisation,
        mean=st.tuples(*[NUMBERS] * channels),
        std=st.tuples(*[st.floats(1e-3, 1e3)] * channels),
    )
)
CARDS = st.builds(
    Card,
    name=NAMES.filter(bool),
    classes=st.integers(2, 1000),
    image_shape=st.tuples(*[st.integers(1, 512)] * 3),
    dataset=NAMES,
    threats=st.lists(st.sampled_from(["linf:8/255", "l2:0.5", "l1:12"]), max_size=3).map(tuple),
    licence=NAMES,
    architecture=st.builds(
        Architecture,
        name=NAMES,
        arguments=st.dictionaries(
            NAMES, st.one_of(st.booleans(), st.integers(-99, 99), NUMBERS, NAMES), max_size=3
        ),
    ),
    normalisation=st.none() | STATISTICS,
    weights=st.builds(Weights, file=NAMES.filter(is_file_name), sha256=st.just(SHA256)),
    made=st.dictionaries(NAMES, VALUES, max_size=3),
    claims=st.lists(
        st.builds(ClaimedNumber, metric=NAMES, value=NUMBERS, source=NAMES), max_size=2
    ).map(tuple),
)


@given(card=CARDS)
def test_any_card_is_read_back_equal(card, tmp_path_factory):
    path = tmp_path_factory.mktemp("card") / "net.toml"
    write_card(card, path)
    assert read_card(path) == card


def test_dates_and_argument_types_survive(tmp_path):
    content = PLAIN | {
        "architecture": {"name": "n", "arguments": {"a": True, "b": 1, "c": 1.0, "d": "1"}},
        "made": {"on": dt.date(2024, 1, 2)},
    }
    card = read_card(written(tmp_path / "net.toml", content))
    write_card(card, tmp_path / "again.toml")
    again = read_card(tmp_path / "again.toml")
    assert again.made == {"on": dt.date(2024, 1, 2)}
    assert [type(value) for value in again.architecture.arguments.values()] == [
        bool,
        int,
        float,
        str,
    ]


def test_defaults_are_not_written(tmp_path):
    path = tmp_path / "net.toml"
    write_card(Card.model_validate(PLAIN), path)
    assert [
        line for line in path.read_text().splitlines() if "family" in line or "claims" in line
    ] == []


# What is wrong is named


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"clases": 3}, "unknown field 'clases': did you mean 'classes'? Known: architecture, "),
        (
            {"weights": PLAIN["weights"] | {"fille": ""}},
            "unknown field of weights 'fille': did you mean 'file'?",
        ),
        (
            {"claims": [{"metric": "m", "value": 1, "source": "s", "sauce": ""}]},
            "unknown field of claims.0 'sauce': did you mean 'source'?",
        ),
        ({"classes": 1}, "field 'classes': Input should be greater than or equal to 2"),
        ({"classes": "many"}, "field 'classes': Input should be a valid integer"),
        ({"name": ""}, "field 'name': String should have at least 1 character"),
        ({"image_shape": [8, 8]}, "field 'image_shape.2': Field required"),
        ({"image_shape": [1, 0, 8]}, "field 'image_shape.1': Input should be greater than 0"),
        (
            {"threats": ["linf:big"]},
            "field 'threats': expected eps as a number or fraction such as 0.5 or 8/255",
        ),
        ({"threats": ["linff:1"]}, "field 'threats': unknown norm 'linff': did you mean 'linf'?"),
        (
            {"normalisation": {"mean": [0.5], "std": [0.0]}},
            "field 'normalisation': expected as many positive deviations",
        ),
        (
            {"normalisation": {"mean": [0.5, 0.5], "std": [1.0]}},
            "deviations as means, got 0.5,0.5/1",
        ),
        (
            {"normalisation": {"mean": [float("nan")], "std": [1.0]}},
            "deviations as means, got nan/1",
        ),
        ({"normalisation": {"mean": [], "std": []}}, "deviations as means, got /"),
        (
            {"weights": {"file": "a.pt", "sha256": "abc"}},
            "field 'weights.sha256': expected the 64 hexadecimal digits",
        ),
        (
            {"weights": {"file": "a.pt", "sha256": SHA256 + "\n"}},
            "field 'weights.sha256': expected the 64 hexadecimal",
        ),
        ({"weights": {"file": "a.pt"}}, "field 'weights.sha256': Field required"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(change, expected, tmp_path):
    assert expected in refusal(written(tmp_path / "net.toml", PLAIN | change))


@pytest.mark.parametrize(
    "file", ["../net.pt", "/etc/passwd", "a/b.pt", "a\\b.pt", "..", ".", "", "net\0.pt", "a\nb"]
)
def test_weights_that_do_not_lie_beside_the_card_are_refused(file, tmp_path):
    path = written(tmp_path / "net.toml", PLAIN | {"weights": {"file": file, "sha256": SHA256}})
    assert "field 'weights.file': expected the name of a file beside the card, got '" in refusal(
        path
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name = = 3", "is not TOML: Invalid value (at line 1, column 8)"),
        (b'name = "a"\nname = "b"', "is not TOML: Cannot overwrite a value"),
        (b'name = "\xff"', "is not TOML: 'utf-8' codec can't decode byte 0xff"),
        (b"", "field 'name': Field required"),
    ],
)
def test_a_file_that_is_no_card_is_refused(content, expected, tmp_path):
    assert expected in refusal(written(tmp_path / "net.toml", content))


@pytest.mark.parametrize(
    ("name", "reason"), [("nothing.toml", "No such file"), ("", "Is a directory")]
)
def test_a_card_that_cannot_be_opened_is_said_with_the_reason(name, reason, tmp_path):
    assert reason in refusal(tmp_path / name)


# Weights beside the card


def test_written_weights_are_the_network_and_carry_their_sha256(tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    network[1].weight = network[1].bias  # shared memory, which safetensors alone refuses
    described = write_weights(network, tmp_path / "new" / "folder", "net")
    written_state = load_file(tmp_path / "new" / "folder" / described.file)
    assert all(
        torch.equal(written_state[name], value) for name, value in network.state_dict().items()
    )
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["net.safetensors"]
    card = Card.model_validate(PLAIN | {"weights": described})
    assert card.weights == described


def test_written_weights_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        write_weights(nn.Linear(1, 1), tmp_path, "net")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "net.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["", "a/b", "..\\up", "two\nlines", "nul\0"])
def test_a_name_that_is_no_file_name_is_refused(name, tmp_path):
    with pytest.raises(UsageError, match="expected a name that can be a file name, got '"):
        write_weights(nn.Linear(1, 1), tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RecordError,
        match=r"cannot write '.*net.safetensors': .*; free space or choose another folder",
    ):
        write_weights(nn.Linear(1, 1), tmp_path / "file", "net")


def save_card(folder, **change):
    """Writes a small network and its card; returns the card's path."""
    network = build_network("small_cnn", {"width": 2}, classes=10, shape=(1, 8, 8))
    card = Card.model_validate(
        PLAIN
        | {"architecture": {"name": "small_cnn", "arguments": {"width": 2}}}
        | {"weights": write_weights(network, folder, "net")}
        | change
    )
    write_card(card, folder / "net.toml")
    return folder / "net.toml"


def open_card(path, choices=None):
    (target,) = describe(str(path), choices or Choices())
    return load(target, classes=10, shape=(1, 8, 8))


def test_changed_weights_are_refused_by_the_cards_sha256(tmp_path):
    path = save_card(tmp_path)
    write_weights(nn.Linear(1, 1), tmp_path, "net")
    with pytest.raises(
        CheckpointError,
        match=r"net.safetensors' is not the file its card describes: the sha256 differs",
    ):
        open_card(path)


def test_a_card_without_its_weights_is_refused(tmp_path):
    path = save_card(tmp_path)
    (tmp_path / "net.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read '.*net.safetensors': No such file"):
        open_card(path)


def code_card(folder):
    (folder / "code.py").write_text(
        "import pathlib\n"
        "from robustbench_kd.checkpoints.architecture import build_network\n"
        "pathlib.Path(__file__).with_name('marker').touch()\n"
        "make = lambda: build_network('small_cnn', {'width': 2}, classes=10, shape=(1, 8, 8))\n"
    )
    return save_card(folder, architecture={"name": f"{folder / 'code.py'}:make"})


def test_a_card_that_names_code_runs_it_only_with_trust(tmp_path):
    path = code_card(tmp_path)
    for target in (path, tmp_path / "net.safetensors", tmp_path):
        with pytest.raises(
            CheckpointError, match=r"code.py:make: read it, then give --trust-code to run it"
        ):
            describe(str(target), Choices())
    assert not (tmp_path / "marker").exists()
    open_card(path, Choices(trust_code=True))
    assert (tmp_path / "marker").exists()


def test_an_architecture_in_place_of_the_cards_code_needs_no_trust(tmp_path):
    open_card(code_card(tmp_path), Choices(architecture="small_cnn", arguments={"width": 2}))
    assert not (tmp_path / "marker").exists()


# Command line


class Hostile:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


NETWORK = ["--arch", "small_cnn", "--arch-arg", "width=2", "--dataset", "digits"]


@pytest.mark.parametrize(
    ("command", "rest"), [("eval", ["--threat", "linf:0.1", "--results"]), ("convert", [])]
)
def test_the_command_line_refuses_a_hostile_file_in_one_line(command, rest, tmp_path):
    path = tmp_path / "net.pt"
    torch.save(
        {"state_dict": nn.Linear(1, 1).state_dict(), "extra": Hostile(tmp_path / "marker")}, path
    )
    result = CliRunner().invoke(main, [command, str(path), *rest, str(tmp_path / "new"), *NETWORK])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        f"Error: '{path}' wants to run posix.mkdir when loaded: refused, nothing was executed"
    )
    assert result.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]


def test_a_converted_checkpoint_is_the_same_network(tmp_path):
    network = build_network("small_cnn", {"width": 2}, classes=10, shape=(1, 8, 8)).eval()
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save(
        {"net": state | {"mean": torch.tensor([0.5]), "std": torch.tensor([0.25])}},
        tmp_path / "old.pth",
    )
    result = CliRunner().invoke(
        main, ["convert", str(tmp_path / "old.pth"), str(tmp_path / "new" / "net"), *NETWORK]
    )
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'new' / 'net.toml'}\n")
    assert "old: took the normalisation 0.5/0.25 from the file" in result.stderr
    subject, images = open_card(tmp_path / "new" / "net.toml"), torch.rand(4, 1, 8, 8)
    assert torch.equal(subject.model(images), network((images - 0.5) / 0.25))
    assert subject.notes == ()
    made = read_card(tmp_path / "new" / "net.toml").made
    assert made == {"converted_from": "old.pth", "original_sha256": sha256(tmp_path / "old.pth")}


# Normalisation


def test_a_normalisation_is_read_by_name_and_by_numbers():
    assert parse_normalisation("none") is None
    assert parse_normalisation("imagenet") is PRESETS["imagenet"]
    assert parse_normalisation("0.5,0.25,0/1,2,0.1") == Normalisation(
        mean=(0.5, 0.25, 0.0), std=(1.0, 2.0, 0.1)
    )


@given(
    pairs=st.lists(st.tuples(st.integers(-999, 999), st.integers(1, 999)), min_size=1, max_size=4)
)
def test_a_normalisation_is_written_as_it_is_read(pairs):
    means, deviations = zip(*pairs, strict=True)
    normalisation = Normalisation(
        mean=[mean / 1000 for mean in means], std=[std / 1000 for std in deviations]
    )
    assert parse_normalisation(str(normalisation)) == normalisation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cifar", "unknown normalisation 'cifar': did you mean 'cifar10'?"),
        ("0.5", "unknown normalisation '0.5'"),
        *((text, f"as many positive deviations as means, got '{text}'")
          for text in ["0.5/0", "0.5/-1", "0.5,0.5/1", "a/b", "/", "0.5/0.5/0.5", "0.5/nan", "inf/1"]),
    ],
)  # fmt: skip
def test_a_wrong_normalisation_is_refused(text, expected):
    with pytest.raises(UsageError) as caught:
        parse_normalisation(text)
    assert expected in str(caught.value)
