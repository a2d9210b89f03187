"""`rkd check`: what it says of a checkpoint before any attack, and how it ends."""

import json
from pathlib import Path

import numpy as np
import pytest

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
FACTS = {
    "anatomy",
    "model",
    "family",
    "architecture",
    "parameters",
    "checkpoint_sha256",
    "notes",
    "dataset",
    "image_shape",
    "pixels",
    "threat",
    "classes",
    "outputs",
    "clean",
    "normalisation",
    "normalisations",
    "findings",
    "verdict",
    "speed",
    "suites",
}


@pytest.fixture
def check(rkd):
    """What `rkd check --json` says of one target on a hundred digits."""

    def run(target, *more):
        told = rkd("check", target, "--dataset", "digits", "--examples", 100, "--json", *more)
        assert told.code == 0, told.stderr
        (facts,) = json.loads(told.stdout)
        return facts

    return run


def named(facts):
    return {finding["check"] for finding in facts["findings"]}


def test_a_sound_checkpoint_has_no_finding(check):
    facts = check(CHECKPOINTS / "digits-teacher.toml")
    assert set(facts) == FACTS
    assert facts["findings"] == facts["anatomy"]["surfaces"] == []
    assert (facts["verdict"], facts["classes"], facts["outputs"]) == ("consistent", 10, "logits")
    assert (facts["image_shape"], facts["pixels"], facts["threat"]) == (
        [1, 8, 8],
        [0, 1],
        "linf:0.1",
    )
    assert facts["clean"]["n"] == 100
    assert facts["clean"]["value"] > 0.95
    assert facts["parameters"] == 188_394


def test_suites_are_priced_and_the_cheapest_stands_first(check):
    facts = check(CHECKPOINTS / "digits-small.toml")
    passes = {cost["suite"]: cost["passes"] for cost in facts["suites"]}
    assert list(passes.values()) == sorted(passes.values())
    assert passes["standard"] == 201 + 9 * 201 + 9 * 300 + 5001
    assert passes["standard"] < passes["plus"]
    assert passes["standard"] < passes["standard+adaptive"]
    assert "rand" not in passes
    assert all(cost["seconds"] > 0 for cost in facts["suites"])
    assert facts["speed"]["megabytes"] > 0


@pytest.mark.parametrize("wrong", ["mnist", "half", "0.3/0.2"])
def test_a_wrong_normalisation_names_the_right_one(rkd, wrong):
    told = rkd("check", CHECKPOINTS / "digits-plain.toml", "--normalisation", wrong)
    assert told.code == 0
    (line,) = (row for row in told.stdout.splitlines() if "give --normalisation" in row)
    assert "give --normalisation none" in line
    assert f"'{wrong}'" in line


def test_the_right_normalisation_stands_first(check):
    facts = check(CHECKPOINTS / "digits-plain.toml")
    assert facts["normalisation"] == "none"
    assert next(iter(facts["normalisations"])) == "none"
    assert {"mnist", "half"} < set(facts["normalisations"])
    assert "cifar10" not in facts["normalisations"]


@pytest.mark.parametrize(
    ("factory", "finding"),
    [
        ("coin_flip", "randomness"),
        ("masked", "zero-gradients"),
        ("detached", "zero-gradients"),
        ("probabilities", "probabilities"),
        ("dropout", "training-mode"),
    ],
)
def test_what_is_broken_is_found_and_no_error(check, factories, factory, finding):
    assert finding in named(check(f"{factories}:{factory}"))


def test_outputs_are_named(check, factories):
    assert check(f"{factories}:probabilities")["outputs"] == "probabilities"


def test_a_person_reads_tables(rkd, factories):
    told = rkd("check", f"{factories}:masked", "--dataset", "digits", "--threat", "l2:0.5")
    assert told.code == 0
    assert "logits of 10 classes" in told.stdout
    assert "l2:0.5" in told.stdout
    assert "zero-gradients" in told.stdout
    assert "standard+adaptive" in told.stdout
    assert "Passes and time are for images that no attack breaks" in told.stderr


def test_silence_is_said(rkd):
    assert (
        "No findings." in rkd("check", CHECKPOINTS / "digits-small.toml", "--examples", 50).stdout
    )


def test_a_folder_is_checked_file_by_file(rkd, tmp_path):
    for name in ("digits-small", "digits-plain"):
        for suffix in (".toml", ".safetensors"):
            (tmp_path / f"{name}{suffix}").symlink_to(CHECKPOINTS / f"{name}{suffix}")
    found = json.loads(rkd("check", tmp_path, "--dataset", "digits", "--json").stdout)
    assert [facts["model"] for facts in found] == ["digits-plain", "digits-small"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere.pth", "there is no file 'nowhere.pth'"),
        ("{factories}:nan_logits", "NaN or infinite logits"),
        ("{factories}:picky", "cannot take images of shape"),
        ("{factories}:three_classes", "has 3 classes, but"),
        ("{factories}:linnear", "did you mean 'linear'"),
    ],
)
def test_what_cannot_be_loaded_or_asked_is_an_error(rkd, factories, target, said):
    assert said in rkd("check", target.format(factories=factories), "--dataset", "digits").error(2)


def test_an_impossible_threat_is_an_error(rkd, factories):
    assert "eps" in rkd(
        "check", f"{factories}:linear", "--dataset", "digits", "--threat", "linf:8"
    ).error(2)


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "factory"), [("resnet2b.pth", "resnet2b"), ("cifar_cnn_a_adv.model", "cnn_a")]
)
def test_a_network_that_normalises_inside_must_not_do_so_twice(rkd, test_data, file, factory):
    net = [
        f"{test_data}/models/{file}",
        "--arch",
        f"{test_data}/real_models.py:{factory}",
        "--threat",
        "linf:2/255",
    ]
    images = ["--dataset", f"npz:{test_data}/cifar10_test_1000.npz", "--examples", 500, "--json"]
    (once,) = json.loads(rkd("check", *net, *images).stdout)
    (twice,) = json.loads(rkd("check", *net, *images, "--normalisation", "cifar10").stdout)
    assert named(once) == set()
    advice = "give --normalisation none"
    (found,) = [one for one in twice["findings"] if one["advice"].startswith(advice)]
    assert found["check"] in {"normalisation", "data-mismatch"}


def test_a_data_set_of_few_examples_is_taken_whole(rkd, tmp_path):
    images, labels = (
        np.random.default_rng(0).random((30, 1, 8, 8), dtype=np.float32),
        np.arange(30) % 10,
    )
    np.savez(tmp_path / "few.npz", images=images, labels=labels)
    few = ("check", CHECKPOINTS / "digits-small.toml", "--dataset", f"npz:{tmp_path / 'few.npz'}")
    told = rkd(*few, "--json")
    assert told.code == 0, told.stderr
    assert json.loads(told.stdout)[0]["clean"]["n"] == 30
    told = rkd(*few, "--examples", 31)
    assert (told.code, "expected at least 31 examples" in told.stderr) == (2, True)
