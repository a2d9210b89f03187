"""Targets: what the user can name, what card and command line say about it, what is loaded."""

import hashlib

import numpy as np
import pytest
import torch
from targets import DIGITS, SMALL, open_one, refusal, save_weights, small

from robustbench_kd.checkpoints.architecture import build_network
from robustbench_kd.checkpoints.card import Architecture, Card, Normalisation, write_card
from robustbench_kd.checkpoints.convert import write_weights
from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.errors import CheckpointError, MissingError, UsageError

HALF = Normalisation(mean=(0.5,), std=(0.25,))


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


def names(text, choices=None):
    return [target.name for target in describe(str(text), choices or Choices())]


# What the user can name


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
    message = refusal(MissingError, describe, str(save_weights(tmp_path / "net.pt")), Choices())
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
            "'{}/net' is not a file; a target is a card, a weights file, a folder, ",
        ),
    ],
)
def test_an_error_says_what_a_target_can_be(text, error, expected, tmp_path):
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
        "'net' would be normalised twice: the checkpoint carries 0.25/0.3081, "
        "and 0.1307/0.3081 was asked for" in message
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
    [
        ("resnet2b.pth", "resnet2b", 112_006),
        ("cifar_cnn_a_adv.model", "cnn_a", 214_918),
        ("resnet20-12fca82f.th", "resnet20", 269_722),
    ],
)
def test_a_published_checkpoint_loads_through_a_factory(name, factory, parameters, test_data):
    subject = real(
        test_data, name, Choices(architecture=f"{test_data / 'real_models.py'}:{factory}")
    )
    assert subject.architecture == f"real_models.py:{factory}"
    assert subject.parameters == parameters
    assert subject.model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


# The number of classes


def saved_for(classes, path, prefix=""):
    network = build_network("small_cnn", {"width": 2}, classes=classes, shape=(3, 8, 8))
    state = {prefix + name: value for name, value in network.state_dict().items()}
    torch.save(state, path)
    return network


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_more_classes_than_the_data_are_taken_as_they_are(prefix, tmp_path):
    network = saved_for(100, tmp_path / "hundred.pth", prefix)
    choices = Choices(architecture="small_cnn", arguments={"width": 2})
    (target,) = describe(str(tmp_path / "hundred.pth"), choices)
    subject = load(target, classes=98, shape=(3, 8, 8))
    assert subject.parameters == sum(value.numel() for value in network.parameters())
    assert "took 100 classes from the file; the data set has 98" in subject.notes


@pytest.mark.parametrize(
    ("classes", "arguments"), [(101, {}), (98, {"classes": 98}), (98, {"width": 3})]
)
def test_weights_of_another_network_are_refused_all_the_same(classes, arguments, tmp_path):
    saved_for(100, tmp_path / "hundred.pth")
    choices = Choices(architecture="small_cnn", arguments={"width": 2} | arguments)
    (target,) = describe(str(tmp_path / "hundred.pth"), choices)
    with pytest.raises(CheckpointError, match="of another shape"):
        load(target, classes=classes, shape=(3, 8, 8))
