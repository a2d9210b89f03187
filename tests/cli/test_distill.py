"""`rkd distill`.

Every method from end to end, resuming, what the card says, and what is refused.
"""

import shutil
import signal
import time
from pathlib import Path

import pytest

from robustbench_kd.checkpoints.card import read_card
from robustbench_kd.core import plugins
from robustbench_kd.distill import open_method
from robustbench_kd.training.recipe import load_recipe

METHODS = sorted(
    name
    for name in plugins.components("distill")
    if f"digits-{name}" in plugins.files("distill/recipes", ".toml")
)
TINY = ["--student", "small_cnn", "--arch-arg", "width=4"]
TOKENS = ["--student", "vit_tiny"]
for argument in ("width=6", "depth=1", "patch=4", "distillation_tokens=2"):
    TOKENS += ["--arch-arg", argument]
SHELF = Path(__file__).parents[2] / "checkpoints"


def quick(method, **changes):
    """The options that train by a method's recipe in two steps."""
    recipe = load_recipe(f"digits-{method}")
    few = {"epochs": 1, "batch_size": 620, "validation_steps": 1, "attack_steps": 1}
    if recipe.weight_averaging:
        few["averaging_start"] = 1
    if method == "crd":
        few["options.negatives"] = 64
    return [
        part for key, value in {**few, **changes}.items() for part in ("--set", f"{key}={value}")
    ]


def teachers(method, folder):
    wanted = open_method(method).options.teachers()
    return [
        part
        for name, _ in zip(("digits-teacher", "digits-plain"), wanted, strict=False)
        for part in ("--teacher", folder / f"{name}.toml")
    ]


@pytest.fixture
def folder(tmp_path):
    """A folder with the cards of a robust and a standard teacher."""
    out = tmp_path / "checkpoints"
    out.mkdir()
    for name in ("digits-teacher", "digits-plain"):
        for suffix in (".toml", ".safetensors"):
            shutil.copy(SHELF / f"{name}{suffix}", out)
    return out


@pytest.fixture
def distill(rkd, folder):
    """Distils into the folder of the teachers."""

    def run(method, *arguments, student=TINY):
        return rkd(
            "distill",
            method,
            "--name",
            "made",
            "--out",
            folder,
            "--device",
            "cpu",
            *student,
            *arguments,
        )

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# From end to end


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_student_and_leaves_its_teachers_alone(distill, rkd, folder, method):
    before = contents(folder)
    student = TOKENS if method == "inductive_bias" else TINY
    options = [
        *teachers(method, folder),
        *quick(method),
        "--threat",
        "linf:0.2",
        "--dataset",
        "digits",
    ]
    told = distill(method, *options, student=student)
    assert told.code == 0, told.stderr
    assert told.stdout == f"{folder / 'made.toml'}\n"
    after = contents(folder)
    assert set(after) - set(before) == {"made.toml", "made.safetensors"}
    assert all(after[name] == before[name] for name in before)
    card = read_card(folder / "made.toml")
    assert (card.made["method"], card.made["threat"], card.made["epoch"]) == (method, "linf:0.2", 1)
    assert card.made["recipe"]["options"].keys() == load_recipe(f"digits-{method}").options.keys()
    assert [teacher.card for teacher in card.teachers] == [
        Path(path).name for path in options if "toml" in str(path)
    ]
    assert rkd("check", folder / "made.toml").code == 0


def test_the_card_says_all_that_is_needed_to_repeat_it(distill, folder):
    told = distill(
        "ard",
        *teachers("ard", folder),
        *quick("ard", seed=5),
        "--with",
        "igdm",
        "--set",
        "additions.igdm.alpha=2.5",
    )
    assert told.code == 0, told.stderr
    assert "igdm 0." in told.stderr
    card = read_card(folder / "made.toml")
    (teacher,) = card.teachers
    assert (teacher.name, teacher.card) == ("digits-teacher", "digits-teacher.toml")
    assert teacher.sha256 == read_card(folder / "digits-teacher.toml").weights.sha256
    recipe = card.made["recipe"]
    assert (card.dataset, card.made["threat"], recipe["seed"]) == ("digits", "linf:0.2", 5)
    assert recipe["additions"]["igdm"]["alpha"] == 2.5
    assert recipe["options"]["temperature"] == 5.0
    assert card.made["validation"].keys() == {"n", "clean_accuracy", "pgd_accuracy"}


def test_the_recipe_of_a_card_gives_the_same_student_again(distill, folder, tmp_path):
    distill("rslad", *teachers("rslad", folder), *quick("rslad"), "--with", "igdm")
    first = (folder / "made.safetensors").read_bytes()
    lines = (
        (folder / "made.toml")
        .read_text()
        .partition("[made.recipe]")[2]
        .partition("[made.versions]")[0]
    )
    recipe = tmp_path / "again.toml"
    recipe.write_text(lines.replace("[made.recipe.", "["))
    told = distill("rslad", *teachers("rslad", folder), "--recipe", recipe, "--with", "igdm")
    assert told.code == 0, told.stderr
    assert (folder / "made.safetensors").read_bytes() == first


def test_a_reconstruction_is_called_so_in_its_card(distill, folder):
    method = "crdnd_reconstructed"
    assert distill(method, *teachers(method, folder), *quick(method)).code == 0
    recipe = read_card(folder / "made.toml").made["recipe"]
    assert "reconstructed" in recipe["method"]
    assert "econstruction" in recipe["summary"]


def test_teachers_are_asked_once_for_all_trainings(distill, folder):
    options = [*teachers("inductive_bias", folder), *quick("inductive_bias")]
    assert distill("inductive_bias", *options, student=TOKENS).code == 0
    stored = sorted((folder / "stored-logits").iterdir())
    assert len(stored) == 2
    changed = [path.stat().st_mtime_ns for path in stored]
    first = (folder / "made.safetensors").read_bytes()
    assert distill("inductive_bias", *options, student=TOKENS).code == 0
    assert [path.stat().st_mtime_ns for path in stored] == changed
    assert (folder / "made.safetensors").read_bytes() == first
    content = bytearray(stored[0].read_bytes())
    content[-1] ^= 1
    stored[0].write_bytes(content)
    assert "is damaged" in distill("inductive_bias", *options, student=TOKENS).error(2)


def test_an_adaptive_evaluation_attacks_the_teacher_beside_the_card(distill, rkd, folder, tmp_path):
    assert distill("kd", *teachers("kd", folder), *quick("kd")).code == 0
    few = [
        "--suite",
        "apgd-ce+adaptive",
        "--examples",
        4,
        "--results",
        tmp_path / "results",
        "--device",
        "cpu",
    ]
    told = rkd("eval", folder / "made.toml", *few)
    assert told.code == 0, told.stderr
    (attacks,) = tmp_path.glob("results/made/*/attacks.csv")
    sha256 = read_card(folder / "digits-teacher.toml").weights.sha256
    assert f"from-surrogate-digits-teacher@{sha256[:8]}:apgd-margin" in attacks.read_text()
    (folder / "digits-teacher.toml").unlink()
    told = rkd("eval", folder / "made.toml", *few)
    assert (
        "made: its teacher 'digits-teacher' is not beside its card, and not attacked" in told.stderr
    )


# Resuming


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(distill, rkd_process, folder, sent):
    options = [*teachers("kd", folder), *quick("kd", epochs=8)]
    process = rkd_process(
        "distill", "kd", *options, *TINY, "--device", "cpu", "--name", "made", "--out", folder
    )
    deadline = time.monotonic() + 100
    while (
        not (folder / "made.training").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode in {-signal.SIGKILL, 130}
    assert (folder / "made.training").exists()
    assert not (folder / "made.toml").exists()
    told = distill("kd", *options)
    assert told.code == 0, told.stderr
    assert "made 1/8" not in told.stderr
    resumed = contents(folder)
    assert not list(folder.glob("*.training"))
    assert distill("kd", *options).code == 0
    assert contents(folder) == resumed


def test_a_file_that_is_no_stopped_training_is_refused(distill, folder):
    (folder / "made.training").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    assert "cannot be read" in distill("kd", *teachers("kd", folder), *quick("kd")).error(2)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rslda"], "unknown distillation method 'rslda': did you mean 'rslad'?"),
        (["igdm"], "'igdm' is no distillation method"),
        (["rslad"], "which threat? Give --threat NORM:EPS"),
        (
            ["rslad", "--threat", "linf:0.2", "--dataset", "digits"],
            "expected as many teachers as 'rslad' has, 1 (teacher), got 0",
        ),
        (["rslad", "--teacher", "nowhere.toml"], "cannot read card 'nowhere.toml'"),
        (
            ["rslad", "--recipe", "digits-ard", "--threat", "linf:0.2"],
            "recipe 'digits-ard' is for 'ard', not for 'rslad'",
        ),
        (
            ["rslad", "--recipe", "none.toml", "--threat", "linf:0.2"],
            "cannot read recipe 'none.toml'",
        ),
        (
            ["rslad", "--set", "epoch=3", "--threat", "linf:0.2"],
            "unknown recipe key 'epoch': did you mean 'epochs'?",
        ),
        (
            ["rslad", "--set", "options.scael=3", "--threat", "linf:0.2"],
            "unknown option of rslad 'scael'",
        ),
        (
            ["rslad", "--with", "igmd", "--threat", "linf:0.2"],
            "unknown addition 'igmd': did you mean 'igdm'?",
        ),
        (
            ["kd", "--with", "igdm", "--threat", "linf:0.2"],
            "'igdm' needs adversarial images, which 'kd' does not make",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(distill, arguments, message):
    assert message in distill(*arguments).error(2)


def test_too_many_teachers_are_refused(distill, folder):
    said = distill("rslad", *teachers("mtard", folder)).error(2)
    assert "expected as many teachers as 'rslad' has, 1 (teacher), got 2" in said


def test_a_teacher_of_other_classes_is_refused(distill, folder):
    card = folder / "digits-teacher.toml"
    card.write_text(card.read_text().replace("classes = 10", "classes = 12"))
    said = distill("rslad", *teachers("rslad", folder)).error(2)
    assert "digits-teacher" in said
    assert "12" in said


def test_a_student_never_overwrites_its_teacher(rkd, folder):
    before = contents(folder)
    said = rkd(
        "distill", "kd", "--name", "digits-teacher", "--out", folder, *teachers("kd", folder), *TINY
    ).error(2)
    assert said.startswith("'digits-teacher' would overwrite its teacher")
    assert contents(folder) == before


def test_a_teacher_that_answers_by_chance_is_refused(distill, rkd, folder):
    assert (
        rkd(
            "train",
            "fit",
            "--name",
            "noisy",
            "--out",
            folder,
            "--family",
            "smoothed",
            "--part",
            folder / "digits-plain.toml",
        ).code
        == 0
    )
    said = distill("kd", "--teacher", folder / "noisy.toml").error(2)
    assert said.startswith("teacher 'noisy' is randomized")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return self.head(x.mul_(0.9).flatten(1))", "writes into the images"),
        ("raise ValueError('own failure')", "cannot take images of the data set: own failure"),
    ],
)
def test_a_teacher_that_would_spoil_the_training_is_refused(distill, tmp_path, body, said):
    (tmp_path / "teacher.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        f"        {body}\n"
    )
    teacher = f"{tmp_path / 'teacher.py'}:Net"
    line = distill("kd", "--teacher", teacher, "--dataset", "digits", "--threat", "linf:0.1")
    assert said in line.error(2)
