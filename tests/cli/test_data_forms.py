"""Files and folders that people really have: a wrong number never looks right."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

NEAREST = """
from torch import nn
class Net(nn.Linear):
    def __init__(self):
        super().__init__(3072, 12)
    def forward(self, x):
        return super().forward(x.flatten(1))
make = Net
"""


@pytest.fixture
def evaluated(rkd, tmp_path):
    """What `rkd eval --json` says of one target in a short attack."""

    def run(*arguments, threat="linf:1/255"):
        told = rkd(
            *("eval", *arguments, "--threat", threat, "--suite", "apgd-ce", "--json"),
            *("--results", tmp_path / "results"),
        )
        assert told.code == 0, told.stderr
        (record,) = json.loads(told.stdout)
        return record, told.stderr

    return run


def mismatch(record):
    """The explanations of the finding, the best first."""
    (finding,) = [one for one in record["findings"] if one["check"] == "data-mismatch"]
    assert record["verdict"] == "unreliable"
    return finding["message"].partition("would gain: ")[2]


# A linear network that tells twelve classes apart by the nearest mean


@pytest.fixture
def nearest(test_data, tmp_path):
    """Writes the network and three images of each class in folders 0 to 11."""
    stored = np.load(test_data / "cifar100_test_1000.npz")
    means = []
    for number in range(12):
        images = stored["images"][stored["labels"] == number][:3]
        means.append(images.astype("float32").mean(0) / 255)
        for row, image in enumerate(images):
            write(tmp_path / "val" / str(number) / f"{row}.png", image)
    flat = torch.from_numpy(np.stack(means)).permute(0, 3, 1, 2).flatten(1)
    torch.save({"weight": 2 * flat, "bias": -(flat**2).sum(1)}, tmp_path / "nearest.pth")
    (tmp_path / "nearest.py").write_text(NEAREST)
    return [tmp_path / "nearest.pth", "--arch", f"{tmp_path / 'nearest.py'}:make"]


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.mark.data
def test_numeric_folders_give_the_right_number(evaluated, nearest, tmp_path):
    record, _ = evaluated(*nearest, "--dataset", f"folder:{tmp_path / 'val'}")
    assert record["clean"]["value"] == pytest.approx(32 / 36)


@pytest.fixture
def subset(nearest, tmp_path):
    for new in (1, 3, 4, 6, 8, 9):
        (tmp_path / "val" / str(new)).rename(tmp_path / f"c{new:02d}")
        (tmp_path / "part").mkdir(exist_ok=True)
        (tmp_path / f"c{new:02d}").rename(tmp_path / "part" / f"c{new:02d}")
    (tmp_path / "names.txt").write_text("".join(f"c{number:02d}\n" for number in range(12)))
    return f"folder:{tmp_path / 'part'}"


@pytest.mark.data
def test_a_subset_without_names_is_red_and_with_names_right(evaluated, nearest, subset, tmp_path):
    record, _ = evaluated(*nearest, "--dataset", subset)
    assert record["clean"]["value"] == 0
    assert mismatch(record).startswith("classes renamed one to one (0 is 1, 1 is 3, 2 is 4")
    named = f"{subset}@classes={tmp_path / 'names.txt'}"
    record, said = evaluated(*nearest, "--dataset", named, "--examples", 12)
    assert record["clean"]["value"] > 0.8
    assert "12 of 18 images, spread over 6 classes by a keyed draw" in said


@pytest.mark.data
def test_hidden_folders_are_skipped_and_named(evaluated, nearest, tmp_path):
    write(tmp_path / "val" / ".ipynb_checkpoints" / "0-checkpoint.png", np.zeros((32, 32, 3), "u1"))
    (tmp_path / "val" / "0" / "._0.png").write_bytes(b"\0\5\26\7")
    record, said = evaluated(*nearest, "--dataset", f"folder:{tmp_path / 'val'}")
    assert record["clean"]["n"] == 36
    assert record["clean"]["value"] == pytest.approx(32 / 36)
    assert "skipped what is hidden: .ipynb_checkpoints, 0/._0.png" in said


# A real network


@pytest.fixture
def robust(test_data):
    return [test_data / "models/resnet2b.pth", "--arch", f"{test_data / 'real_models.py'}:resnet2b"]


@pytest.fixture
def saved(test_data, tmp_path):
    """Saves 24 real images and labels after a change, and gives the name of the data set."""
    stored = np.load(test_data / "cifar10_test_1000.npz")
    images, labels = stored["images"][:24], stored["labels"][:24]

    def save(change):
        changed, numbers = change(images, labels)
        np.savez(tmp_path / "mine.npz", images=changed, labels=numbers, classes=10)
        return f"npz:{tmp_path / 'mine.npz'}"

    return save


RIGHT = {
    "bytes": lambda x, y: (x, y),
    "a column of labels": lambda x, y: (x, y[:, None]),
    "another order in memory": lambda x, y: (np.asfortranarray(x.transpose(0, 3, 1, 2) / 255), y),
    "the other byte order": lambda x, y: ((x.transpose(0, 3, 1, 2) / 255).astype(">f4"), y),
}


@pytest.mark.data
@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_right_data_in_other_forms_have_no_findings(evaluated, robust, saved, change):
    record, _ = evaluated(*robust, "--dataset", saved(change), threat="linf:2/255")
    assert record["clean"]["value"] == pytest.approx(20 / 24)
    assert record["findings"] == []


WRONG = {
    "cast too early": (lambda x, y: ((x / 255).astype("uint8"), y), ""),
    "zero and one": (lambda x, y: ((x > 127).astype("uint8"), y), "pixels times 255"),
    "BGR": (lambda x, y: (x[..., ::-1], y), "channels in the other order"),
    "counted from 1": (lambda x, y: (x[y < 9], y[y < 9] + 1), "labels shifted by one (label c is"),
    "reversed": (lambda x, y: (x, 9 - y), "classes renamed one to one"),
}


@pytest.mark.data
@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_wrong_data_are_red_with_the_best_explanation_first(evaluated, robust, saved, change, said):
    record, _ = evaluated(*robust, "--dataset", saved(change), threat="linf:2/255")
    assert mismatch(record).startswith(said)


@pytest.mark.data
def test_labels_up_to_the_number_of_classes_are_counted_from_one(rkd, robust, test_data, tmp_path):
    stored = np.load(test_data / "cifar10_test_1000.npz")
    np.savez(tmp_path / "m.npz", images=stored["images"][:24], labels=stored["labels"][:24] + 1)
    told = rkd("eval", *robust, "--dataset", f"npz:{tmp_path / 'm.npz'}", "--threat", "linf:0.1")
    assert "subtract 1 from all labels" in told.error(2)


@pytest.mark.data
def test_a_doubled_normalisation_is_red(evaluated, test_data):
    network = [
        test_data / "models/resnet20-12fca82f.th",
        *("--arch", f"{test_data / 'real_models.py'}:resnet20", "--normalisation", "cifar10"),
        *("--dataset", f"npz:{test_data / 'cifar10_test_1000.npz'}", "--examples", 60),
    ]
    record, _ = evaluated(*network)
    assert mismatch(record).startswith("normalisation none")


# What must be said


def test_what_is_missing_is_asked_for_in_one_message(rkd, tmp_path):
    (tmp_path / "net.pth").write_bytes(b"")
    said = rkd("eval", tmp_path / "net.pth").error(2)
    assert all(part in said for part in ("which network", "which images", "which threat"))
    assert all(part in said for part in ("--arch", "--dataset", "--threat"))
    said = rkd("eval", tmp_path / "net.pth", "--dataset", "digits").error(2)
    assert "which images" not in said
    assert "which threat" in said


@pytest.mark.parametrize("command", ["eval", "check"])
def test_without_a_card_and_a_data_set_the_command_asks(rkd, factories, command):
    assert "which images for 'linear'" in rkd(command, f"{factories}:linear").error(2)


def test_a_number_without_checks_is_unchecked_until_it_is_checked(rkd, digits_net):
    (record,) = json.loads(rkd("eval", *digits_net, "--no-probes", "--json").stdout)
    assert record["verdict"] == "unchecked"
    assert "unchecked" in rkd("eval", *digits_net, "--no-probes").stdout
    told = rkd("eval", *digits_net)
    assert "the earlier result lacked checks" in told.stderr
    assert "unchecked" not in told.stdout
    assert "stored result" in rkd("eval", *digits_net, "--no-probes").stderr


# Images and models of unusual sizes

SIZES = """
import torch
from torch import nn
from torch.nn import functional

class Resizing(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(48, 10)
    def forward(self, x):
        return self.head(functional.interpolate(x, size=(4, 4)).flatten(1))

class Many(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 21843)
        with torch.no_grad():
            self.head.bias[:10] += 3
    def forward(self, x):
        return self.head(x.mean((2, 3)))

class Fixed(Many):
    def forward(self, x):
        assert x.shape[-1] == 224, f"Input image size ({x.shape[-2]}*{x.shape[-1]}) is not 224"
        return super().forward(x)
"""


@pytest.fixture
def sizes(tmp_path, monkeypatch):
    (tmp_path / "sizes.py").write_text(SIZES)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(SIZES, namespace)  # our own text
    return namespace


def own_labels(network, images, path):
    """Saves images with the labels that a network gives them, up to every fourth."""
    with torch.no_grad():
        labels = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).argmax(1).numpy()
    labels[::4] = (labels[::4] + 1) % 10
    np.savez(path, images=images, labels=labels, classes=10)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 6), (4, 4)])
def test_images_that_are_not_square_give_the_accuracy_that_they_have(evaluated, sizes, shape):
    images = np.random.default_rng(0).integers(0, 256, (40, *shape, 3), dtype=np.uint8)
    own_labels(sizes["Resizing"]().eval(), images, "mine.npz")
    record, _ = evaluated("sizes.py:Resizing", "--dataset", "npz:mine.npz", threat="linf:0.00001")
    assert record["clean"]["value"] == 0.75
    assert record["robust"]["value"] == pytest.approx(0.75, abs=0.03)


def test_a_model_of_thousands_of_classes_is_attacked(evaluated, sizes):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    own_labels(sizes["Many"]().eval(), images, "mine.npz")
    record, _ = evaluated("sizes.py:Many", "--dataset", "npz:mine.npz", threat="linf:0.5")
    assert record["clean"]["value"] == 0.75
    assert record["robust"]["value"] < 0.75


def test_a_model_of_one_size_says_so_in_one_line(rkd, sizes):
    images = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    np.savez("mine.npz", images=images, labels=np.arange(4))
    asked = ["--dataset", "npz:mine.npz", "--threat", "linf:0.1"]
    line = rkd("eval", "sizes.py:Fixed", *asked).error(2)
    assert "Input image size (32*32) is not 224" in line
    assert "folder:PATH@SIZE" in line
