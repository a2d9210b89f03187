"""Whatever a person gets wrong is one line on standard error, without a traceback, and a documented
exit code."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_kd.models import small_cnn

NET = [
    "--dataset",
    "digits",
    "--arch",
    "small_cnn",
    "--arch-arg",
    "width=4",
    "--threat",
    "linf:0.1",
]


@pytest.fixture
def refused(rkd, tmp_path):
    """Runs `rkd eval`, which must fail before it evaluates anything; gives its one line."""

    def run(*arguments, code=2):
        told = rkd(
            "eval",
            *arguments,
            "--examples",
            20,
            "--suite",
            "apgd-ce",
            "--results",
            tmp_path / "results",
        )
        assert told.stdout == ""
        assert len(told.stderr.splitlines()) == 1
        return told.error(code)

    return run


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(small_cnn.build(channels=1, size=8, width=4).state_dict(), path)
    return path


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_missing_file(refused, tmp_path):
    assert "there is no file" in refused(tmp_path / "net.pt", *NET)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file(refused, rkd, weights, tmp_path, suffix):
    path = weights
    if suffix == ".safetensors":
        assert rkd("convert", weights, tmp_path / "new", *NET).code == 0
        path = tmp_path / "new.safetensors"
        path.with_suffix(".toml").unlink()
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"'{path}'" in refused(path, *NET)


def test_an_empty_file(refused, tmp_path):
    (tmp_path / "net.pth").touch()
    assert "is empty" in refused(tmp_path / "net.pth", *NET)


@pytest.mark.parametrize(
    "content", ["<!DOCTYPE html><html>Sign in</html>", "\n  <html><body>404</body></html>"]
)
def test_a_web_page_saved_as_weights(refused, tmp_path, content):
    (tmp_path / "net.pt").write_text(content)
    assert "is a web page, not weights" in refused(tmp_path / "net.pt", *NET)


def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(refused, tmp_path):
    marker = tmp_path / "owned"
    torch.save({"state_dict": Payload(f"touch {marker}")}, tmp_path / "net.pt")
    assert "wants to run" in refused(tmp_path / "net.pt", *NET)
    assert not marker.exists()


def test_another_architecture(refused, weights):
    text = refused(weights, "--dataset", "digits", "--arch", "resnet20", "--threat", "linf:0.1")
    assert "does not fit the architecture" in text
    assert "nearest: --arch" in text or "likely another architecture" in text


@pytest.mark.parametrize(
    ("changed", "cause"),
    [({"classes": 7}, "number of classes"), ({"channels": 3}, "number of channels")],
)
def test_another_number_of_classes_or_channels(refused, tmp_path, changed, cause):
    built = small_cnn.build(**{"classes": 10, "channels": 1, "size": 8, "width": 4, **changed})
    torch.save(built.state_dict(), tmp_path / "net.pt")
    assert f"likely another {cause}" in refused(tmp_path / "net.pt", *NET)


def test_a_model_with_fewer_classes_than_the_data(refused, factories):
    text = refused(f"{factories}:three_classes", "--dataset", "digits", "--threat", "linf:0.1")
    assert "the model has 3 classes, but label 9 occurs in 'digits'" in text


def test_images_of_another_shape(refused, factories, images):
    text = refused(f"{factories}:linear", "--dataset", images(), "--threat", "linf:0.1")
    assert "the model cannot take images of shape (3, 8, 8) (channels, height, width)" in text


@pytest.fixture
def images(tmp_path):
    """An npz file of 20 images with something wrong about it."""

    def write(**changed):
        generator = np.random.default_rng(0)
        known = {
            "images": generator.random((20, 3, 8, 8), dtype=np.float32),
            "labels": np.arange(20) % 10,
        }
        np.savez(tmp_path / "x.npz", **{**known, **changed})
        return f"npz:{tmp_path / 'x.npz'}"

    return write


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": np.full((20, 3, 8, 8), 255.0, np.float32)}, "expected pixels in [0, 1]"),
        ({"images": np.full((20, 3, 8, 8), -0.1, np.float32)}, "expected pixels in [0, 1]"),
        ({"images": np.full((20, 3, 8, 8), np.nan, np.float32)}, "expected pixels in [0, 1]"),
        (
            {"labels": np.full(20, 10), "classes": 10},
            "expected classes as one whole number of at least 11",
        ),
        ({"labels": np.full(20, -1), "classes": 10}, "labels"),
        ({"labels": np.arange(19)}, "20"),
        ({"images": np.zeros((0, 3, 8, 8), np.float32), "labels": np.zeros(0, int)}, ""),
        ({"images": np.zeros((20, 5), np.float32)}, "images"),
    ],
)
def test_data_that_break_the_contract(refused, factories, images, changed, said):
    assert said in refused(
        f"{factories}:linear", "--dataset", images(**changed), "--threat", "linf:0.1"
    )


def test_a_data_set_that_is_not_there(refused, factories, tmp_path):
    for dataset in (f"npz:{tmp_path / 'none.npz'}", f"folder:{tmp_path / 'none'}", "cifar10"):
        text = refused(
            f"{factories}:linear",
            "--dataset",
            dataset,
            "--data-dir",
            tmp_path,
            "--threat",
            "linf:0.1",
        )
        assert "expected" in text


@pytest.mark.parametrize("factory", ["nan_logits", "infinite_logits"])
def test_logits_that_are_not_finite(refused, factories, factory):
    text = refused(f"{factories}:{factory}", "--dataset", "digits", "--threat", "linf:0.1")
    assert "NaN or infinite logits" in text


@pytest.mark.parametrize(
    ("eps", "said"),
    [
        ("linf:-8/255", "expected eps above 0"),
        ("linf:nan", "expected eps as a number"),
        ("linf:eight", "expected eps as a number"),
        ("linf:8", "did you mean 8/255?"),
        ("8/255", "expected a threat NORM:EPS"),
    ],
)
def test_a_radius_that_is_none(refused, factories, eps, said):
    assert said in refused(f"{factories}:linear", "--dataset", "digits", "--threat", eps)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--suite", "standart"], "unknown suite or attack 'standart': did you mean 'standard'?"),
        (["--suite", "apgd-ce,sqare"], "unknown attack 'sqare': did you mean 'square'?"),
        (["--engine", "autoatack"], "unknown engine 'autoatack': did you mean 'autoattack'?"),
        (["--dataset", "digit"], "unknown data set 'digit': did you mean 'digits'?"),
        (["--threat", "lnf:0.1"], "unknown norm 'lnf': did you mean 'linf'?"),
        (["--arch", "small_cn"], "unknown architecture 'small_cn': did you mean 'small_cnn'?"),
        (["--arch-arg", "widht=3"], "unknown argument of small_cnn 'widht': did you mean 'width'?"),
        (["--arch-arg", "width"], "expected --arch-arg KEY=VALUE, got 'width'"),
        (
            ["--normalisation", "cifar01"],
            "unknown normalisation 'cifar01': did you mean 'cifar10'?",
        ),
        (["--weights-key", "state_dict"], "weights key"),
        (["--device", "gpu"], "expected --device auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--device", "meta"], "expected --device auto, cpu, cuda or cuda:N, got 'meta'"),
        (["--device", "cuda:99"], "there is no device 'cuda:99'"),
        (["--examples", "0"], "expected --examples as a positive number or all, got '0'"),
        (["--examples", "-5"], "expected --examples as a positive number or all, got '-5'"),
        (["--examples", "501"], "expected at least 501 examples for the limit, got 500"),
        (["--batch-size", "0"], "expected --batch-size as a positive number or auto, got '0'"),
        (["--treat", "linf:0.1"], "No such option '--treat'"),
        (["--seed", "x"], "Invalid value for '--seed'"),
    ],
)
def test_an_option_that_is_wrong(rkd, weights, tmp_path, changed, said):
    told = rkd(
        "eval",
        weights,
        *NET,
        "--suite",
        "apgd-ce",
        "--results",
        tmp_path / "results",
        "--examples",
        9,
        *changed,
    )
    assert said in told.error(2)
    assert len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval"], "Missing argument 'TARGET...'."),
        (["evl"], "unknown command 'evl': did you mean 'eval'?"),
        (["eval", "nowhere"], "'nowhere' is not a file; a target is a card"),
        (["eval", "no\nwhere"], "where' is not a file"),
        (["eval", "nowhere.toml"], "cannot read card 'nowhere.toml'"),
        (
            ["eval", "nowhere:make", "--dataset", "digits", "--threat", "linf:0.1"],
            "cannot import 'nowhere'",
        ),
        (["leaderboard", "nowhere"], "there is no results folder 'nowhere'"),
        (
            ["train", "digits-pgdat", "--name", "x", "--arch", "small_cnn"],
            "did you mean 'digits-pgd-at'?",
        ),
        (["train", "digits-plain", "--name", "x"], "which network? Give --arch NAME"),
        (
            ["train", "digits-plain", "--name", "x", "--arch", "small_cnn", "--set", "epoch=1"],
            "epoch",
        ),
        (["convert", "nowhere.pt", "x", "--arch", "small_cnn"], "for which data was it trained?"),
        (
            ["convert", "nowhere.pt", "x", "--arch", "small_cnn", "--dataset", "digits"],
            "there is no file 'nowhere.pt'",
        ),
    ],
)
def test_a_command_that_is_wrong(rkd, arguments, said):
    told = rkd(*arguments)
    assert said in told.error(2)
    assert len(told.stderr.splitlines()) == 1


def test_which_threat_is_asked_where_no_card_says(refused, factories):
    assert "which threat for 'linear'? Give --threat NORM:EPS" in refused(f"{factories}:linear")


def test_one_name_for_several_models(refused, weights, tmp_path):
    weights.rename(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    text = refused(tmp_path, *NET, "--name", "x")
    assert "--name names one model, but there are 2: leave it out" in text


@pytest.mark.parametrize("suite", ["apgd-ce", "fab-t"])
def test_a_model_without_gradients(rkd, factories, digits_net, suite):
    told = rkd(
        "eval", f"{factories}:detached", *digits_net[1:], "--suite", suite, "--engine", "autoattack"
    )
    assert f"{suite} cannot attack the model" in told.error(2)


def test_a_model_that_refuses_by_an_assertion(refused, factories):
    text = refused(f"{factories}:picky", "--dataset", "digits", "--threat", "linf:0.1")
    assert "input height (8) does not match the model (224)" in text


def test_a_factory_that_fails(refused, tmp_path):
    (tmp_path / "mine.py").write_text("def make():\n    raise ValueError('first\\nsecond')\n")
    text = refused(f"{tmp_path / 'mine.py'}:make", "--dataset", "digits", "--threat", "linf:0.1")
    assert "ValueError: first" in text


def test_out_of_memory(rkd, factories, digits_net):
    told = rkd("eval", f"{factories}:greedy", *digits_net[1:])
    assert (
        "out of memory with a batch of one image; free memory and run the same command to resume"
        in told.error(4)
    )


def test_memory_that_ends_outside_a_batch(rkd, digits_net, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("robustbench_kd.datasets.open_dataset", full)
    assert "out of memory" in rkd("eval", *digits_net).error(4)


def test_results_in_place_of_which_there_is_a_file(rkd, digits_net, tmp_path):
    (tmp_path / "taken").touch()
    assert "is a file" in rkd("eval", *digits_net, "--results", tmp_path / "taken").error(2)


@pytest.mark.parametrize("place", ["taken/deeper", "/proc/rkd"])
def test_results_that_cannot_be_written(rkd, digits_net, tmp_path, place):
    (tmp_path / "taken").touch()
    told = rkd("eval", *digits_net, "--results", tmp_path / place)
    assert "cannot write results to" in told.error(2)


def test_a_disk_that_fills_up_ends_the_run_and_loses_nothing(rkd, digits_net, tmp_path, full_disk):
    rkd("eval", *digits_net, "--results", tmp_path / "whole")  # and everything is imported
    with full_disk(500):
        told = rkd("eval", *digits_net)
    assert "what was decided is kept, free some space and run again" in told.error(2)
    assert rkd("eval", *digits_net).code == 0
    whole, resumed = (
        next((tmp_path / name).glob("*/*/examples.csv")) for name in ("whole", "results")
    )
    assert whole.read_text() == resumed.read_text()


def test_a_damaged_record_says_what_to_do(rkd, digits_net, tmp_path):
    rkd("eval", *digits_net)
    (path,) = tmp_path.glob("results/*/*/run.json")
    path.write_text("{")
    assert "delete it and run again" in rkd("eval", *digits_net).error(2)
    assert rkd("eval", *digits_net, "--fresh").code == 0


def test_a_full_disk_behind_standard_output(rkd_process):
    with Path("/dev/full").open("w") as full:
        process = rkd_process("list", stdout=full)
        _, told = process.communicate(timeout=60)
    assert told == "Error: cannot read or write: No space left on device\n"
    assert process.returncode == 2
