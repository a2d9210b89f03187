"""Targets.

What a person can point at, what the card and the command line say of it, and what is loaded in the
end.
"""

import hashlib
import importlib
import sys
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_kd.checkpoints.architecture import build_network
from robustbench_kd.checkpoints.card import Architecture, Card, Normalisation, write_card
from robustbench_kd.checkpoints.convert import write_weights
from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.errors import CheckpointError, RkdError, UsageError

DIGITS = {"classes": 10, "shape": (1, 8, 8)}
SMALL = Choices(architecture="small_cnn", arguments={"width": 2})
HALF = Normalisation(mean=(0.5,), std=(0.25,))


def small():
    return build_network("small_cnn", {"width": 2}, **DIGITS).eval()


def save_card(folder, name="net", *, network=None, file="", **change):
    """Writes a small network and its card; returns the card's path."""
    weights = write_weights(network or small(), folder, file or name)
    plain = {
        "name": name,
        "classes": 10,
        "image_shape": (1, 8, 8),
        "dataset": "digits",
        "weights": weights,
    }
    card = Card(
        **{
            **plain,
            "architecture": Architecture(name="small_cnn", arguments={"width": 2}),
            **change,
        }
    )
    write_card(card, folder / f"{name}.toml")
    return folder / f"{name}.toml"


def save_weights(path, network=None, **extra):
    torch.save({**(network or small()).state_dict(), **extra}, path)
    return path


def open_one(text, choices=None, *, classes=10, shape=(1, 8, 8)):
    (target,) = describe(str(text), choices or Choices())
    return load(target, classes=classes, shape=shape)


def refusal(kind, call, *arguments, **named):
    """The message of an expected error, always one line."""
    with pytest.raises(RkdError) as caught:
        call(*arguments, **named)
    assert caught.type is kind
    assert str(caught.value).isprintable()
    return str(caught.value)


def names(text, choices=None):
    return [target.name for target in describe(str(text), choices or Choices())]


# What a person can point at


def test_a_card_loads_the_network_with_its_normalisation_inside(tmp_path):
    network = small()
    path = save_card(tmp_path, network=network, normalisation=HALF)
    subject = open_one(path)
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(subject.model(images), network((images - 0.5) / 0.25))
    assert (
        subject.checkpoint_sha256
        == hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()
    )
    assert (subject.name, subject.family, subject.normalisation) == ("net", "classifier", HALF)
    assert subject.architecture == "small_cnn channels=1 classes=10 width=2"
    assert subject.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert not any(part.training for part in subject.model.modules())


def test_a_weights_file_beside_its_card_is_described_by_it(tmp_path):
    save_card(tmp_path)
    assert open_one(tmp_path / "net.safetensors").architecture.endswith("width=2")


def test_a_weights_file_that_its_neighbour_does_not_describe_is_not_taken_for_the_other(tmp_path):
    save_card(tmp_path)
    message = refusal(UsageError, describe, str(save_weights(tmp_path / "net.pt")), Choices())
    assert message.startswith(f"which network is '{tmp_path / 'net.pt'}'? Give --arch NAME")
    assert message.endswith("its neighbour 'net.toml' describes 'net.safetensors'")


def test_a_folder_is_read_in_natural_order(tmp_path):
    for epoch in (10, 2, 1):
        save_card(tmp_path, f"epoch-{epoch}")
    save_card(tmp_path, "best", file="chosen")
    save_weights(tmp_path / "epoch-11.pt")
    assert names(tmp_path, SMALL) == ["best", "epoch-1", "epoch-2", "epoch-10", "epoch-11"]


def test_names_with_digits_that_are_no_numbers_do_not_stop_a_folder(tmp_path):
    for name in ("1²3.pt", "1-3.pt"):
        save_weights(tmp_path / name)
    assert sorted(names(tmp_path, SMALL)) == ["1-3", "1²3"]


@pytest.mark.parametrize(
    ("text", "error", "expected"),
    [
        ("{}", UsageError, "folder '{}' holds no card (.toml) and no weights (.safetensors, .pt, "),
        ("{}/net.pt", CheckpointError, "there is no file '{}/net.pt'"),
        ("{}/net.toml", CheckpointError, "cannot read card '{}/net.toml': No such file"),
        (
            "{}/net",
            UsageError,
            "'{}/net' is no file; a target is a card, a weights file, a folder, robustbench:ID, ",
        ),
    ],
)
def test_what_is_no_target_is_said_with_what_would_be_one(text, error, expected, tmp_path):
    assert expected.format(tmp_path) in refusal(error, describe, text.format(tmp_path), SMALL)


@pytest.mark.parametrize(
    "text", ["timm:resnet18", "robustbench:Wang2023", "net.py:make", "nets:make"]
)
def test_a_target_that_names_its_network_takes_no_other_architecture(text):
    assert (
        refusal(UsageError, describe, text, SMALL)
        == f"'{text}' names its network itself: leave out --arch small_cnn"
    )


# The card and the command line


def test_the_command_line_overrides_the_card(tmp_path):
    path = save_card(tmp_path, normalisation=HALF)
    (target,) = describe(
        str(path),
        Choices(name="other", normalisation="none", arguments={"width": 3}, weights_key="k"),
    )
    assert (target.name, target.normalisation, target.weights_key) == ("other", None, "k")
    assert target.arguments == {"classes": 10, "channels": 1, "width": 3}


def test_arguments_of_the_card_do_not_go_to_another_architecture(tmp_path):
    (target,) = describe(
        str(save_card(tmp_path)), Choices(architecture="net.py:make", arguments={"depth": 1})
    )
    assert (target.architecture, target.arguments) == ("net.py:make", {"depth": 1})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {"classes": 100},
            "'net' has 10 classes, the data set has 100: choose another --dataset",
        ),
        (
            {"shape": (3, 8, 8)},
            "'net' takes images of 1 channels, the data set has 3: choose another --dataset",
        ),
    ],
)
def test_data_that_the_card_does_not_fit_are_refused(data, expected, tmp_path):
    assert refusal(UsageError, open_one, save_card(tmp_path), **data) == expected


# Normalisation


def carrying(path, mean):
    return save_weights(path, mean=torch.tensor([mean]), std=torch.tensor([0.3081]))


def test_a_normalisation_in_the_file_is_taken(tmp_path):
    subject = open_one(carrying(tmp_path / "net.pt", 0.1307), SMALL)
    assert str(subject.normalisation) == "0.1307/0.3081"
    assert "took the normalisation 0.1307/0.3081 from the file" in subject.notes


def test_two_normalisations_are_refused_unless_they_are_the_same(tmp_path):
    choices = Choices(architecture="small_cnn", arguments={"width": 2}, normalisation="mnist")
    assert (
        str(open_one(carrying(tmp_path / "same.pt", 0.1307), choices).normalisation)
        == "0.1307/0.3081"
    )
    message = refusal(CheckpointError, open_one, carrying(tmp_path / "net.pt", 0.25), choices)
    assert (
        "'net' would be normalised twice: the checkpoint carries 0.25/0.3081, and 0.1307/0.3081 "
        "was asked" in message
    )


def test_a_normalisation_for_other_channels_is_refused(tmp_path):
    choices = Choices(architecture="small_cnn", normalisation="cifar10")
    message = refusal(
        UsageError,
        open_one,
        save_weights(tmp_path / "net.pt", build_network("small_cnn", {}, **DIGITS)),
        choices,
    )
    assert (
        "for images of 3 channels, the data set has 1: choose another --dataset or --normalisation"
        in message
    )


# Architectures and factories


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("smal_cnn", {}, "unknown architecture 'smal_cnn': did you mean 'small_cnn'?"),
        (
            "small_cnn",
            {"widht": 3},
            "unknown argument of small_cnn 'widht': did you mean 'width'? Known: channels, ",
        ),
        (
            "small_cnn",
            {"width": "wide"},
            "'small_cnn' cannot be built with classes=10 channels=1 size=8 width=wide: ",
        ),
        ("small_cnn", {"width": -1}, "width=-1: Trying to create tensor with negative dimension"),
        ("resnet18", {"depth": 7}, "expected a ResNet of depth 18, 34 or 50, got 7"),
        ("nothing.py:make", {}, "there is no file 'nothing.py'"),
        (
            "nets.py",
            {},
            "'nets.py' is a file: say which function of it builds the network, 'nets.py:FUNCTION'",
        ),
        (
            "no_such_package:make",
            {},
            "cannot import 'no_such_package': No module named 'no_such_package'; install it, or",
        ),
    ],
)
def test_a_network_that_cannot_be_is_said_with_the_nearest(name, arguments, expected):
    assert expected in refusal(UsageError, build_network, name, arguments, **DIGITS)


@pytest.mark.parametrize(
    ("code", "error", "expected"),
    [
        ("def make(): raise ValueError('no\\nweights')", CheckpointError, "net.py:make' failed: ValueError: no"),
        ("def make(): raise SystemExit(2)", CheckpointError, "net.py:make' failed: SystemExit: 2"),
        ("def make(): return [1]", CheckpointError, "net.py:make' to return a torch.nn.Module, got list"),
        ("def make(width): pass", CheckpointError, "failed: TypeError: make() missing 1 required positional argument"),
        ("def maker(): pass", UsageError, "net.py' 'make': did you mean 'maker'? Known: maker"),
        ("make = 3", UsageError, "unknown factory in '"),
        ("import no_such_package", UsageError, "net.py': No module named 'no_such_package'; install it"),
        ("def make(:", CheckpointError, "net.py' failed: SyntaxError: "),
        ("import sys; sys.exit('usage: train.py')", CheckpointError, "net.py' failed: SystemExit: usage: train.py"),
        ("1 / 0", CheckpointError, "net.py' failed: ZeroDivisionError: division by zero"),
    ],
)  # fmt: skip
def test_a_factory_that_fails_is_said_with_the_reason(code, error, expected, tmp_path):
    (tmp_path / "net.py").write_text(code)
    assert expected in refusal(error, build_network, f"{tmp_path / 'net.py'}:make", {}, **DIGITS)


def test_a_factory_typed_by_a_person_needs_no_trust_and_its_code_is_identified(tmp_path):
    source = "from torch import nn\ndef make(width=1): return nn.Sequential(nn.Flatten(), nn.Linear(64, width))\n"
    (tmp_path / "net.py").write_text(source)
    subject = open_one(f"{tmp_path / 'net.py'}:make", Choices(arguments={"width": 10}))
    assert subject.code_sha256 == hashlib.sha256(source.encode()).hexdigest()
    assert (subject.name, subject.architecture) == ("make", "net.py:make width=10")
    assert subject.model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_factory_of_an_importable_module_fills_with_weights(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\nmake = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    subject = open_one(
        save_weights(tmp_path / "net.pt", network), Choices(architecture="my_nets:make")
    )
    assert torch.equal(subject.network[1].weight, network[1].weight)


# Libraries


def fake(name, **content):
    module = ModuleType(name)
    vars(module).update(content)
    return module


CFG = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def linear(*_names, **_options):
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    network.pretrained_cfg = CFG
    return network


def published(name):
    if name != "resnet18":
        raise ValueError(f"Unknown model {name}\nKnown: ...")
    return SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: SimpleNamespace(**CFG)))


MODELS = fake("torchvision.models", get_model=linear, get_model_weights=published)
LIBRARIES = {
    "timm": fake("timm", create_model=linear),
    "torchvision": fake("torchvision", models=MODELS),
    "robustbench": fake("robustbench"),
    "robustbench.utils": fake("robustbench.utils", load_model=linear),
}


@pytest.mark.parametrize(
    ("text", "name", "normalisation"),
    [("timm:resnet18", "resnet18", Normalisation(**CFG)), ("torchvision:resnet18", "resnet18", Normalisation(**CFG)),
     ("robustbench:cifar10/Linf/Wang2023", "Wang2023", None)],
)  # fmt: skip
def test_a_model_of_a_library_comes_with_its_normalisation_in_evaluation_mode(
    text, name, normalisation
):
    importlib.import_module("pyautoattack.state")
    with mock.patch.dict(sys.modules, LIBRARIES):
        subject = open_one(text, shape=(3, 8, 8))
    assert (subject.name, subject.architecture, subject.normalisation) == (
        name,
        text,
        normalisation,
    )
    assert not subject.network.training


@pytest.mark.parametrize(("library", "package"), [("timm", "robustbench-kd[timm]"), ("torchvision", "torchvision"),
                                                  ("robustbench", "robustbench-kd[robustbench]")])  # fmt: skip
def test_a_missing_library_is_said_with_how_to_install_it(library, package):
    with mock.patch.dict(sys.modules, {library: None}):
        message = refusal(UsageError, open_one, f"{library}:net")
    assert (
        message
        == f"'{library}:net' needs {library}, which is not installed: pip install '{package}'"
    )


def test_an_unknown_model_of_a_library_is_said_with_its_reason():
    with mock.patch.dict(sys.modules, LIBRARIES):
        message = refusal(CheckpointError, open_one, "torchvision:resnet181")
    assert message == "torchvision cannot load 'resnet181': ValueError: Unknown model resnet181"


# Real data


def real(test_data, name, choices):
    return open_one(test_data / "models" / name, choices, shape=(3, 32, 32))


@pytest.mark.data
def test_a_published_checkpoint_loads_without_help_and_scores_what_it_scores(test_data):
    choices = Choices(architecture="resnet20", normalisation="imagenet")
    subject = real(test_data, "resnet20-12fca82f.th", choices)
    assert subject.notes == (
        "weights found under 'state_dict'",
        "stripped the prefix 'module.'",
    )
    data = np.load(test_data / "cifar10_test_1000.npz")
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        predictions = subject.model(images).argmax(dim=1).numpy()
    assert (predictions == data["labels"]).mean() == pytest.approx(0.915)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "factory", "parameters"),
    [("resnet2b.pth", "resnet2b", 112_006), ("cifar_cnn_a_adv.model", "cnn_a", 214_918), ("resnet20-12fca82f.th", "resnet20", 269_722)],
)  # fmt: skip
def test_a_published_checkpoint_loads_through_a_factory(name, factory, parameters, test_data):
    subject = real(
        test_data, name, Choices(architecture=f"{test_data / 'real_models.py'}:{factory}")
    )
    assert subject.architecture == f"real_models.py:{factory}"
    assert subject.parameters == parameters
    assert subject.model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
