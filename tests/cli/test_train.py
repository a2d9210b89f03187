"""`rkd train` for defences that are composed of parts.

Plain networks are trained in the tests of the other commands.
"""

import shutil
from pathlib import Path

import pytest

from robustbench_kd.checkpoints.card import read_card
from robustbench_kd.core.plugins import files

QUICK = ["--set", "validation=20", "--set", "validation_steps=1"]
FRONT = ["--family", "frontend", "--arch-arg", "depth=4", "--arch-arg", "width=4"]


@pytest.fixture(scope="module")
def shelf(rkd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    net = ["--arch", "small_cnn", "--arch-arg", "width=4", "--set", "epochs=1"]
    assert rkd("train", "digits-plain", "--name", "net", "--out", folder, *net, *QUICK).code == 0
    return folder


@pytest.fixture
def folder(shelf, tmp_path):
    return Path(shutil.copytree(shelf, tmp_path / "checkpoints"))


@pytest.fixture
def train(rkd, folder):
    """Trains into the folder, by few steps."""

    def run(recipe, *arguments):
        return rkd("train", recipe, "--name", "made", "--out", folder, *arguments, *QUICK)

    return run


def test_a_front_end_is_trained_and_opened_again(train, rkd, folder):
    few = ["--set", "attack_steps=1", "--set", "batch_size=400", "--threat", "linf:0.15"]
    told = train("digits-frontend", *FRONT, "--part", folder / "net.toml", *few)
    assert told.code == 0, told.stderr
    assert told.stdout == f"{folder / 'made.toml'}\n"
    assert "made: epoch 1 of 1, validation clean " in told.stderr
    assert ", PGD " in told.stderr.splitlines()[-1]
    card = read_card(folder / "made.toml")
    assert (card.family, card.arguments, card.threats) == (
        "frontend",
        {"depth": 4, "width": 4},
        ("linf:0.15",),
    )
    again = train("fit", "--family", "smoothed", "--name", "noisy", "--part", folder / "made.toml")
    assert again.code == 0, again.stderr


def test_a_randomized_defence_is_fitted_and_tells_no_pgd(train, folder):
    told = train(
        "fit", "--family", "ensemble", "--part", folder / "net.toml", "--part", folder / "net.toml"
    )
    assert told.code == 0, told.stderr
    assert "made: fitted, validation clean " in told.stderr
    assert "PGD" not in told.stderr
    assert not (folder / "made.safetensors").exists()


def test_the_usual_data_are_those_of_the_first_part(train, folder):
    card = folder / "net.toml"
    card.write_text(card.read_text().replace('"digits"', '"digitz"'))
    said = train("fit", "--family", "smoothed", "--part", card).error(2)
    assert said.startswith("unknown data set 'digitz': did you mean 'digits'?")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "which network? Give --arch NAME, or --family and --part for a composed defence"),
        (["--family", "frontend"], "expected --family and --part together"),
        (["--part", "net.toml"], "expected --family and --part together"),
        (
            ["--family", "frontend", "--part", "net.toml", "--arch", "small_cnn"],
            "leave out --arch and --normalisation",
        ),
        (
            ["--family", "frontend", "--part", "net.toml", "--normalisation", "half"],
            "leave out --arch and",
        ),
    ],
)
def test_a_network_and_a_composed_defence_exclude_each_other(train, arguments, expected):
    assert expected in train("digits-plain", *arguments).error(2)


def test_a_part_outside_the_folder_is_refused_with_what_to_do(train, shelf):
    said = train("fit", "--family", "smoothed", "--part", shelf / "net.toml").error(2)
    assert f"copy its card and weights there, or choose --out {shelf}" in said


def test_an_argument_that_the_family_has_not_comes_with_the_nearest(train, folder):
    said = train("fit", *FRONT, "--arch-arg", "amplitud=0.1", "--part", folder / "net.toml").error(
        2
    )
    assert "unknown argument of frontend 'amplitud': did you mean 'amplitude'?" in said


def test_a_part_that_names_code_needs_trust(train, folder, factories):
    code = [
        "--arch",
        f"{factories}:conv",
        "--arch-arg",
        "channels=1",
        "--name",
        "coded",
        "--set",
        "epochs=1",
    ]
    assert train("digits-plain", *code).code == 0
    asked = ["fit", "--family", "smoothed", "--part", folder / "coded.toml"]
    assert "give --trust-code to run it" in train(*asked).error(2)
    assert train(*asked, "--trust-code").code == 0


def test_a_recipe_of_ones_own_takes_no_data_unasked(rkd, tmp_path):
    shipped = files("training/recipes", ".toml")["digits-plain"]
    recipe = Path(shutil.copy(shipped, tmp_path / "digits-mine.toml"))
    done = rkd("train", str(recipe), "--name", "x", "--arch", "small_cnn", "--out", str(tmp_path))
    assert done.code == 2
    assert "which data set? Give --dataset" in done.stderr


def test_a_student_of_a_teacher_without_a_card_takes_no_data_unasked(rkd, tmp_path):
    teacher = tmp_path / "net.py"
    teacher.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    done = rkd(
        "distill", "kd", "--teacher", f"{teacher}:make", "--student", "small_cnn",
        "--threat", "linf:0.2", "--name", "x", "--out", str(tmp_path), "--trust-code",
    )  # fmt: skip
    assert done.code == 2
    assert "which data set? Give --dataset" in done.stderr
