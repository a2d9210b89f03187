"""Networks by name: architectures, factories in Python files, models of other libraries."""

import hashlib
import importlib
import sys
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest
import torch
from targets import DIGITS, open_one, refusal, save_weights
from torch import nn

from robustbench_kd.checkpoints.architecture import build_network
from robustbench_kd.checkpoints.card import Normalisation
from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.core.errors import CheckpointError, UsageError

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
def test_an_impossible_network_is_refused_with_the_nearest_name(name, arguments, expected):
    assert expected in refusal(UsageError, build_network, name, arguments, **DIGITS)


@pytest.mark.parametrize(
    ("code", "error", "expected"),
    [
        (
            "def make(): raise ValueError('no\\nweights')",
            CheckpointError,
            "net.py:make' failed: ValueError: no",
        ),
        ("def make(): raise SystemExit(2)", CheckpointError, "net.py:make' failed: SystemExit: 2"),
        (
            "def make(): return [1]",
            CheckpointError,
            "net.py:make' to return a torch.nn.Module, got list",
        ),
        (
            "def make(width): pass",
            CheckpointError,
            "failed: TypeError: make() missing 1 required positional argument",
        ),
        ("def maker(): pass", UsageError, "net.py' 'make': did you mean 'maker'? Known: maker"),
        ("make = 3", UsageError, "unknown factory in '"),
        (
            "import no_such_package",
            UsageError,
            "net.py': No module named 'no_such_package'; install it",
        ),
        ("def make(:", CheckpointError, "net.py' failed: SyntaxError: "),
        (
            "import sys; sys.exit('usage: train.py')",
            CheckpointError,
            "net.py' failed: SystemExit: usage: train.py",
        ),
        ("1 / 0", CheckpointError, "net.py' failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_factory_that_fails_is_reported_with_the_reason(code, error, expected, tmp_path):
    (tmp_path / "net.py").write_text(code)
    assert expected in refusal(error, build_network, f"{tmp_path / 'net.py'}:make", {}, **DIGITS)


def test_a_factory_that_the_user_types_needs_no_trust_and_its_code_is_identified(tmp_path):
    source = (
        "from torch import nn\n"
        "def make(width=1): return nn.Sequential(nn.Flatten(), nn.Linear(64, width))\n"
    )
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
    [
        ("timm:resnet18", "resnet18", Normalisation(**CFG)),
        ("torchvision:resnet18", "resnet18", Normalisation(**CFG)),
        ("robustbench:cifar10/Linf/Wang2023", "Wang2023", None),
    ],
)
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


@pytest.mark.parametrize(
    ("library", "package"),
    [
        ("timm", "robustbench-kd[timm]"),
        ("torchvision", "torchvision"),
        ("robustbench", "robustbench-kd[robustbench]"),
    ],
)
def test_a_missing_library_is_reported_with_how_to_install_it(library, package):
    with mock.patch.dict(sys.modules, {library: None}):
        message = refusal(UsageError, open_one, f"{library}:net")
    assert (
        message
        == f"'{library}:net' needs {library}, which is not installed: pip install '{package}'"
    )


def test_an_unknown_model_of_a_library_is_reported_with_the_reason():
    with mock.patch.dict(sys.modules, LIBRARIES):
        message = refusal(CheckpointError, open_one, "torchvision:resnet181")
    assert message == "torchvision cannot load 'resnet181': ValueError: Unknown model resnet181"
