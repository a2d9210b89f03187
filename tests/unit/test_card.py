"""Cards: they read back as written, and an error names the file and the field."""

import datetime as dt

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from targets import open_one
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
from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe
from robustbench_kd.core.errors import CheckpointError
from robustbench_kd.core.text import printable

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
    """Returns the message with which a card is refused: one line that names the file."""
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
    name=NAMES.filter(lambda name: 0 < len(printable(name)) <= 200),
    classes=st.integers(2, 1000),
    image_shape=st.tuples(st.integers(1, 64), st.integers(1, 512), st.integers(1, 512)),
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


# Errors name the field


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
            "deviations as means, at most 64, got 0.5,0.5/1",
        ),
        (
            {"normalisation": {"mean": [float("nan")], "std": [1.0]}},
            "deviations as means, at most 64, got nan/1",
        ),
        ({"normalisation": {"mean": [], "std": []}}, "deviations as means, at most 64, got /"),
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
def test_weights_outside_the_folder_of_the_card_are_refused(file, tmp_path):
    path = written(tmp_path / "net.toml", PLAIN | {"weights": {"file": file, "sha256": SHA256}})
    assert "field 'weights.file': expected the name of a file beside the card, got '" in refusal(
        path
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name = = 3", "is not TOML: Invalid value (at line 1, column 8)"),
        (b'name = "a"\nname = "b"', "is not TOML: Cannot overwrite a value"),
        (b'name = "\xff"', "is no text in UTF-8: "),
        (b"", "field 'name': Field required"),
    ],
)
def test_a_file_that_is_not_a_card_is_refused(content, expected, tmp_path):
    assert expected in refusal(written(tmp_path / "net.toml", content))


@pytest.mark.parametrize(
    ("name", "reason"), [("nothing.toml", "No such file"), ("", "Is a directory")]
)
def test_a_card_that_cannot_be_opened_is_reported_with_the_reason(name, reason, tmp_path):
    assert reason in refusal(tmp_path / name)


# Weights beside the card


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


def test_changed_weights_are_refused_by_the_cards_sha256(tmp_path):
    path = save_card(tmp_path)
    write_weights(nn.Linear(1, 1), tmp_path, "net")
    with pytest.raises(
        CheckpointError,
        match=r"net.safetensors' is not the file its card describes: the sha256 differs",
    ):
        open_one(path)


def test_a_card_without_its_weights_is_refused(tmp_path):
    path = save_card(tmp_path)
    (tmp_path / "net.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read '.*net.safetensors': No such file"):
        open_one(path)


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
    open_one(path, Choices(trust_code=True))
    assert (tmp_path / "marker").exists()


def test_an_architecture_in_place_of_the_cards_code_needs_no_trust(tmp_path):
    open_one(code_card(tmp_path), Choices(architecture="small_cnn", arguments={"width": 2}))
    assert not (tmp_path / "marker").exists()
