"""`rkd verify`: an honest run holds, and whatever is changed in one is caught."""

import csv
import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from robustbench_kd.core.rundir import ADVERSARIAL, EXAMPLES, RECORD
from robustbench_kd.tensors.stored_images import read, write

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
CARD = CHECKPOINTS / "digits-small.toml"
EPS = 0.2


@pytest.fixture(scope="module")
def honest(rkd, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    asked = ["--threat", f"linf:{EPS}", "--suite", "apgd-ce", "--examples", 40, "--no-probes"]
    assert rkd("eval", CARD, *asked, "--results", results, "--save-adversarial").code == 0
    (record,) = results.glob(f"*/*/{RECORD}")
    return record.parent


@pytest.fixture
def run(honest, tmp_path):
    """A copy of an honest run, to be tampered with."""
    return Path(shutil.copytree(honest, tmp_path / "run"))


def failing(told):
    """The names of the checks that failed, after looking whether exit code and message agree."""
    document = json.loads(told.stdout)
    names = {check["name"] for check in document["checks"] if not check["holds"]}
    assert document["holds"] == (not names)
    assert told.code == bool(names), told.stderr
    assert not names or "checks of" in told.error(1)
    return names


def verified(rkd, run, *options):
    return failing(rkd("verify", run, "--json", "--checkpoints", CHECKPOINTS, *options))


def change(run, **changed):
    """Replaces tensors of the stored images; a function gets the tensor it replaces."""
    stored = read(run / ADVERSARIAL)
    write(
        run / ADVERSARIAL,
        replace(
            stored, **{name: make(getattr(stored, name).copy()) for name, make in changed.items()}
        ),
    )


def edit_record(run, **changed):
    record = json.loads((run / RECORD).read_text())
    (run / RECORD).write_text(
        json.dumps(record | {name: make(record[name]) for name, make in changed.items()})
    )


def edit_row(run, wanted, **changed):
    """Changes the first line of `examples.csv` that is wanted."""
    with (run / EXAMPLES).open() as file:
        rows = list(csv.DictReader(file))
    next(row for row in rows if wanted(row)).update(changed)
    with (run / EXAMPLES).open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def first(value):
    """Returns what sets the first entry of an array."""

    def make(array):
        array[0] = value
        return array

    return make


# What holds


@pytest.mark.parametrize(
    "options", [[], ["--batch-size", 7], ["--precision", "fp64"], [CARD]], ids=str
)
def test_an_honest_run_holds(rkd, honest, options):
    assert verified(rkd, honest, *options) == set()


def test_a_run_may_be_named_by_its_record_and_is_shown_as_a_table(rkd, honest):
    told = rkd("verify", honest / RECORD, "--checkpoints", CHECKPOINTS)
    assert told.code == 0
    assert f"digits-small linf:{EPS}, run {honest.name}" in told.stdout
    assert "FAILS" not in told.stdout
    lines = [line.split() for line in told.stdout.splitlines()]
    assert ["ball", "holds", "all", "within"] in [line[:4] for line in lines]


# The images


def test_a_tampered_image_is_caught(rkd, run):
    original = read(run / ADVERSARIAL).originals[0]
    change(run, images=first(original))
    assert verified(rkd, run) == {"errors", "predictions", "distances", "robust accuracy"}


def test_an_image_out_of_the_ball_by_a_ten_thousandth_is_caught(rkd, run):
    stored = read(run / ADVERSARIAL)
    image, original = stored.images[0].copy(), stored.originals[0]
    darkest = np.unravel_index(original.argmin(), original.shape)
    image[darkest] = original[darkest] + EPS + 1e-4
    change(run, images=first(image))
    assert "ball" in verified(rkd, run)


def test_a_pixel_outside_the_box_is_caught(rkd, run):
    change(run, images=first(1.001))
    assert {"box", "ball"} <= verified(rkd, run)


def test_an_image_of_no_numbers_is_caught(rkd, run):
    change(run, images=first(np.nan))
    assert {"box", "ball"} <= verified(rkd, run)


def test_a_tampered_label_is_caught(rkd, run):
    change(run, labels=lambda labels: (labels + (np.arange(len(labels)) == 0)) % 10)
    assert verified(rkd, run) == {"labels"}


def test_a_tampered_clean_image_is_caught(rkd, run):
    change(run, originals=first(0.5))
    assert verified(rkd, run) == {"labels"}


def test_a_tampered_prediction_is_caught(rkd, run):
    change(run, predictions=first(-1))
    assert verified(rkd, run) == {"predictions"}


def test_a_missing_image_is_caught(rkd, run):
    change(
        run, **dict.fromkeys(("ids", "labels", "predictions", "images"), lambda array: array[:-1])
    )
    assert {"images", "robust accuracy"} <= verified(rkd, run)


def test_images_of_another_run_are_caught(rkd, run):
    write(run / ADVERSARIAL, replace(read(run / ADVERSARIAL), run="0123456789abcdef"))
    assert verified(rkd, run) == {"images"}


HOSTILE = {
    "garbage": lambda path: path.write_bytes(b"garbage" * 100),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "wrong type": lambda path: rewrite(path, images=lambda images: images.astype(np.float64)),
    "wrong shape": lambda path: rewrite(path, images=lambda images: images[:, :, :4]),
    "an example twice": lambda path: rewrite(path, ids=lambda ids: np.repeat(ids[:1], len(ids))),
    "a stranger": lambda path: rewrite(path, ids=first(10**6)),
    "other images": lambda path: rewrite(
        path, **dict.fromkeys(("images", "originals"), lambda part: part[:, :, :4])
    ),
}


def rewrite(path, **changed):
    stored = read(path)
    tensors = load_file(path)
    tensors |= {name: np.ascontiguousarray(make(tensors[name])) for name, make in changed.items()}
    save_file(tensors, path, {"schema_version": "1", "run": stored.run, "threat": stored.threat})


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_fails_without_a_crash(rkd, run, kind):
    HOSTILE[kind](run / ADVERSARIAL)
    assert verified(rkd, run) == {"files"}


# The rest of the run


@pytest.mark.parametrize("name", ["clean", "robust"])
def test_an_edited_accuracy_is_caught(rkd, run, name):
    edit_record(run, **{name: lambda accuracy: accuracy | {"value": accuracy["value"] + 0.025}})
    assert verified(rkd, run) == {f"{name} accuracy"}


def test_an_edited_interval_is_caught(rkd, run):
    edit_record(run, robust=lambda accuracy: accuracy | {"ci_low": accuracy["ci_low"] + 0.01})
    assert verified(rkd, run) == {"robust accuracy"}


def test_an_edited_stage_is_caught(rkd, run):
    edit_record(
        run, stages=lambda stages: [*stages[:-1], stages[-1] | {"accuracy": stages[0]["accuracy"]}]
    )
    assert verified(rkd, run) == {"stages"}


def test_an_edited_radius_is_caught(rkd, run):
    edit_record(run, identity=lambda identity: identity | {"eps": 0.1, "eps_text": "0.1"})
    assert {"record", "images", "ball"} <= verified(rkd, run)


def test_an_edited_verdict_is_caught(rkd, run):
    edit_record(run, verdict=lambda _: "unreliable")
    assert verified(rkd, run) == {"record"}


def broken(row):
    return row["broken_by"] == "apgd-ce"


def standing(row):
    return row["robust"] == "True"


HIDDEN = {"robust": "True", "broken_by": "", "adversarial_prediction": "", "distance": ""}
EDITS = {
    "a loss hidden": (broken, HIDDEN, "images"),
    "a loss invented": (standing, {"robust": "False", "broken_by": "apgd-ce"}, "images"),
    "another attack": (broken, {"broken_by": "magic"}, "examples.csv"),
    "another prediction": (broken, {"adversarial_prediction": "11"}, "predictions"),
    "another distance": (broken, {"distance": "0.1"}, "distances"),
    "another clean prediction": (standing, {"clean_prediction": "11"}, "clean answers"),
    "another label": (standing, {"label": "11"}, "labels"),
    "a contradiction": (broken, {"robust": "True"}, "examples.csv"),
    "no number": (broken, {"distance": "nan"}, "files"),
    "no such column": (broken, {"distance": "far"}, "files"),
    "a stranger": (broken, {"index": "1000000"}, "files"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_line_is_caught(rkd, run, kind):
    wanted, changed, check = EDITS[kind]
    edit_row(run, wanted, **changed)
    assert check in verified(rkd, run)


# What the run is about


def test_a_swapped_checkpoint_is_caught(rkd, honest):
    assert {"checkpoint", "errors"} <= verified(rkd, honest, CHECKPOINTS / "digits-plain.toml")


def test_weights_that_changed_under_their_card_are_caught(rkd, honest, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(CARD, folder)
    weights = load_file(CARD.with_suffix(".safetensors"))
    weights["0.weight"] *= 1.5
    save_file(weights, folder / "digits-small.safetensors")
    told = rkd("verify", honest, "--checkpoints", folder)
    assert "is not the file its card describes" in told.error(2)
    digest = hashlib.sha256((folder / "digits-small.safetensors").read_bytes()).hexdigest()
    card = folder / CARD.name
    card.write_text(re.sub('sha256 = "[0-9a-f]+"', f'sha256 = "{digest}"', card.read_text()))
    assert "checkpoint" in verified(rkd, honest, "--checkpoints", folder)


def test_another_architecture_around_the_same_weights_is_caught(rkd, honest):
    weights = CARD.with_suffix(".safetensors")
    options = ["--arch", "small_cnn", "--arch-arg", "width=6", "--normalisation", "0.1/0.5"]
    assert {"defence", "clean answers"} <= verified(rkd, honest, weights, *options)


def test_other_data_are_caught(rkd, honest, tmp_path):
    from robustbench_kd.datasets import open_dataset

    data = open_dataset("digits", limit=40)
    np.savez(tmp_path / "digits.npz", images=1 - data.images.numpy(), labels=data.labels.numpy())
    assert "data" in verified(rkd, honest, "--dataset", f"npz:{tmp_path / 'digits.npz'}")


# What cannot be verified


def test_a_run_without_images_is_told_how_to_get_them(rkd, run):
    (run / ADVERSARIAL).unlink()
    told = rkd("verify", run, "--checkpoints", CHECKPOINTS)
    assert "has no images: run the same 'rkd eval' again with --save-adversarial" in told.error(4)


def test_an_unfinished_run_is_not_verified(rkd, run):
    edit_record(run, status=lambda _: "interrupted")
    assert "is unfinished" in rkd("verify", run).error(4)


def test_what_is_no_run_is_refused(rkd, tmp_path):
    assert "is no run: expected a folder with a run.json" in rkd("verify", tmp_path).error(2)


def test_without_a_checkpoint_that_fits_one_is_asked_for(rkd, honest, tmp_path):
    told = rkd("verify", honest, "--checkpoints", tmp_path)
    assert (
        f"which checkpoint is 'digits-small'? No card in '{tmp_path}' has its name or weights"
        in told.error(2)
    )


def test_a_folder_of_checkpoints_is_no_target(rkd, honest):
    assert "name the one of 'digits-small'" in rkd("verify", honest, CHECKPOINTS).error(2)


def test_the_earlier_result_without_images_is_said_to_be_evaluated_again(rkd, digits_net):
    rkd("eval", *digits_net)
    assert (
        "the earlier result lacked images, done in"
        in rkd("eval", *digits_net, "--save-adversarial").stderr
    )
    assert "stored result" in rkd("eval", *digits_net, "--save-adversarial").stderr


# Where the model and the data were


@pytest.fixture
def foreign(rkd, tmp_path, monkeypatch):
    """A run of a weights file under a key, with a factory and data that only options name."""
    monkeypatch.chdir(tmp_path)
    Path("parts").mkdir()
    Path("parts/net.py").write_text(
        "from torch import nn\n"
        "def make(width=1):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Linear(width, 2))\n"
    )
    state = {
        "1.weight": torch.eye(12)[:3],
        "1.bias": torch.zeros(3),
        "2.weight": torch.tensor([[1.0, 0, 0], [0, 1, 0]]),
        "2.bias": torch.zeros(2),
    }
    torch.save({"ema": state, "epoch": 1}, "parts/net.pth")
    images = np.zeros((8, 2, 2, 3), dtype=np.uint8)
    images[:4, 0, 0, 0] = 200
    images[4:, 0, 0, 1] = 200
    np.savez("parts/few.npz", images=images, labels=np.repeat([0, 1], 4))
    asked = ["--arch", "parts/net.py:make", "--arch-arg", "width=3", "--weights-key", "ema"]
    data = ["--dataset", "npz:parts/few.npz", "--threat", "linf:0.5", "--suite", "apgd-ce"]
    kept = ["--save-adversarial", "--no-probes", "--results", "out"]
    told = rkd("eval", "parts/net.pth", *asked, *data, *kept)
    assert told.code == 0, told.stderr
    (record,) = Path("out").glob(f"*/*/{RECORD}")
    return record.parent


def test_a_run_says_itself_where_model_and_data_were(rkd, foreign):
    assert failing(rkd("verify", foreign, "--json", "--trust-code")) == set()


def test_code_that_a_record_names_is_not_run_unasked(rkd, foreign):
    Path("parts/net.py").write_text("raise SystemExit('it ran')")
    line = rkd("verify", foreign).error(2)
    assert "parts/net.py:make" in line
    assert "--trust-code" in line


def test_a_model_that_has_moved_is_asked_for(rkd, foreign):
    Path("parts/net.pth").rename("parts/other.pth")
    assert "TARGET" in rkd("verify", foreign).error(2)
    moved = ["parts/other.pth", "--arch", "parts/net.py:make", "--arch-arg", "width=3"]
    told = rkd("verify", foreign, *moved, "--weights-key", "ema", "--json")
    assert failing(told) == set()
