"""Data sets: the contract on every component, then each with files whose content is known."""

import importlib
import inspect
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.io import savemat

from robustbench_kd.core import plugins
from robustbench_kd.core.errors import DatasetError, UsageError
from robustbench_kd.datasets import open_dataset
from robustbench_kd.tensors.contracts import Dataset

NAMES = sorted(plugins.components("datasets"))
TORCHVISION = ["cifar10", "cifar100", "fashion_mnist", "mnist", "svhn"]
DIGITS_TEST = "c6e95306d65786b0c9b656cc08464f4fd18dcf68d76ee3ed8c2515023b3e2cc6"
DIGITS_TRAIN = "be1a891773265694b93f59ae20c068d644df8b898387514c27b2e4ccbb3400a0"


def random_bytes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def as_floats(pixels):
    """The known answer for uint8 `(n, h, w, c)`."""
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))


def takes(name):
    return getattr(plugins.module("datasets", name), "ARGUMENT", "")


def assert_keeps_the_contract(data: Dataset):
    n = len(data)
    assert data.checked() is data
    assert data.images.dtype == torch.float32
    assert data.images.shape[0] == n
    assert data.images.is_contiguous()
    assert data.labels.dtype == torch.int64
    assert data.labels.shape == (n,)
    assert len(set(data.ids)) == n
    assert all(type(row) is int for row in data.ids)


@pytest.fixture
def vision():
    try:
        return importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")


# Every component


@pytest.mark.parametrize("name", NAMES)
def test_a_component_has_a_description_and_loads_a_request(name):
    component = plugins.find("datasets", name, "data set")
    load = plugins.module("datasets", component.stem).load
    assert component.summary.endswith((".", ")", "`"))
    assert next(iter(inspect.signature(load).parameters)) == "request"


@pytest.mark.parametrize("name", NAMES)
def test_importing_a_component_needs_no_torchvision_and_no_sklearn(name, monkeypatch):
    module = plugins.module("datasets", name)
    for heavy in ("torchvision", "torchvision.datasets", "sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, heavy, None)
    importlib.reload(module)


@pytest.mark.parametrize("name", [name for name in NAMES if not takes(name)])
def test_without_files_a_set_loads_or_says_where_it_looked_and_what_to_do(name, tmp_path, vision):
    try:
        data = open_dataset(name, limit=7, data_dir=tmp_path)
    except DatasetError as error:
        answer = str(error)
    else:
        assert_keeps_the_contract(data)
        assert (data.name, len(data)) == (name, 7)
        return
    assert all(part in answer for part in (str(tmp_path), "--data-dir", "--download"))


@pytest.mark.parametrize("name", [name for name in NAMES if takes(name)])
def test_a_missing_path_is_named(name, tmp_path, vision):
    with pytest.raises(DatasetError, match="nowhere"):
        open_dataset(f"{name}:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("name", [name for name in NAMES if takes(name)])
@pytest.mark.parametrize("end", ["", ":"])
def test_a_missing_argument_is_refused_with_what_to_write(name, end):
    with pytest.raises(UsageError, match=f"write {name}:"):
        open_dataset(name + end)


@pytest.mark.parametrize("name", [name for name in NAMES if not takes(name)])
def test_a_needless_argument_is_refused(name):
    with pytest.raises(UsageError, match=f"'{name}' takes no argument, got 'x'"):
        open_dataset(f"{name}:x")


# Opening


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(UsageError, match="unknown data set 'cifar-10': did you mean 'cifar10'"):
        open_dataset("cifar-10")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(UsageError, match=f"at least 1 example, got {limit}"):
        open_dataset("digits", limit=limit)


def test_a_limit_above_the_size_says_how_many_there_are():
    with pytest.raises(DatasetError, match=r"at least 501 examples .* got 500"):
        open_dataset("digits", limit=501)


def test_a_limit_of_the_size_takes_all():
    assert open_dataset("digits", limit=500).fingerprint() == DIGITS_TEST


def test_the_variant_of_a_name_reaches_the_component(monkeypatch):
    digits = open_dataset("digits", limit=1)
    asked = []

    def load(request, **arguments):
        asked.append(arguments)
        return digits

    monkeypatch.setattr(plugins, "find", lambda *_: plugins.Component("stem", {"fine": True}, ""))
    monkeypatch.setattr(plugins, "module", lambda *_: SimpleNamespace(load=load))
    assert open_dataset("variant").name == "variant"
    assert asked == [{"fine": True}]


@pytest.mark.parametrize(
    ("lowest", "highest", "advice"),
    [
        (0, 255, "divide them by 255"),
        (-2, 2, "undo any normalisation"),
        (0, 300, "undo"),
        (-0.0001, 1.0001, r"1\.0001\]; .*images\.clip\(0, 1\)"),
    ],
)
def test_pixels_outside_the_box_come_with_the_likely_cure(lowest, highest, advice):
    images = torch.tensor([lowest, highest], dtype=torch.float32).view(1, 1, 1, 2)
    with pytest.raises(DatasetError, match=advice):
        Dataset("x", images, torch.zeros(1, dtype=torch.int64), (0,), 2).checked()


def test_nan_pixels_break_the_contract():
    images = torch.full((1, 1, 2, 2), torch.nan)
    with pytest.raises(DatasetError, match="NaN"):
        Dataset("x", images, torch.zeros(1, dtype=torch.int64), (0,), 2).checked()


# Digits


def test_digits_have_the_stated_sizes():
    train, test = open_dataset("digits", split="train"), open_dataset("digits")
    assert train.images.shape == (1297, 1, 8, 8)
    assert test.images.shape == (500, 1, 8, 8)
    assert train.classes == test.classes == 10


def test_the_splits_of_digits_are_disjoint_complete_and_in_order():
    train, test = open_dataset("digits", split="train").ids, open_dataset("digits").ids
    assert sorted(train + test) == list(range(1797))
    assert list(train) == sorted(train)
    assert list(test) == sorted(test)


def test_every_class_has_its_share_of_both_splits_of_digits():
    counts = [
        torch.bincount(open_dataset("digits", split=split).labels) for split in ("train", "test")
    ]
    share = sum(counts) / 1797
    for count in counts:
        assert ((count / count.sum() - share).abs() < 0.01).all()


def test_the_ids_of_digits_are_the_rows_of_scikit_learn():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    data = open_dataset("digits", limit=50)
    rows = list(data.ids)
    assert data.labels.tolist() == labels[rows].tolist()
    assert (data.images.flatten(1).numpy() * 16 == pixels[rows]).all()


@pytest.mark.parametrize(("split", "expected"), [("train", DIGITS_TRAIN), ("test", DIGITS_TEST)])
def test_digits_are_the_same_for_ever(split, expected):
    assert open_dataset("digits", split=split).fingerprint() == expected


def test_a_limit_takes_a_prefix_of_digits():
    whole, part = open_dataset("digits"), open_dataset("digits", limit=33)
    assert part.fingerprint() == whole.take(torch.arange(33)).fingerprint()


# npz


@pytest.fixture
def save(tmp_path):
    """Writes `mine.npz` and returns its name as a data set."""

    def write(**arrays):
        np.savez_compressed(tmp_path / "mine.npz", **arrays)
        return f"npz:{tmp_path / 'mine.npz'}"

    return write


IMAGES = random_bytes(4, 6, 5, 3)
LABELS = np.array([0, 2, 1, 7])


def test_an_npz_of_bytes_is_read_channels_first_over_255(save):
    data = open_dataset(save(images=IMAGES, labels=LABELS))
    assert_keeps_the_contract(data)
    assert torch.equal(data.images, as_floats(IMAGES))
    assert data.labels.tolist() == LABELS.tolist()
    assert data.ids == (0, 1, 2, 3)


def test_an_npz_of_grey_bytes_has_one_channel(save):
    data = open_dataset(save(images=IMAGES[..., 0], labels=LABELS))
    assert torch.equal(data.images, as_floats(IMAGES[..., :1]))


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2"])
def test_an_npz_of_floats_is_read_as_it_is(save, dtype):
    images = (IMAGES.transpose(0, 3, 1, 2) / 255).astype(dtype)
    data = open_dataset(save(images=images, labels=LABELS))
    assert_keeps_the_contract(data)
    assert (data.images.numpy() == images.astype(np.float32)).all()


@pytest.mark.parametrize("dtype", ["uint8", "int32", ">i8"])
def test_any_integer_type_will_do_for_labels(save, dtype):
    assert (
        open_dataset(save(images=IMAGES, labels=LABELS.astype(dtype))).labels.tolist()
        == LABELS.tolist()
    )


def test_all_bytes_become_the_nearest_float_to_their_255th():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    expected = [float(np.float32(byte / 255)) for byte in range(256)]
    common = importlib.import_module("robustbench_kd.datasets._common")
    assert common.to_images(pixels).flatten().tolist() == expected


@settings(deadline=None, max_examples=50)
@given(
    hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 3), st.integers(4, 6), st.integers(4, 6), st.sampled_from([1, 3])),
    )
)
def test_bytes_survive_the_way_to_floats_and_back(tmp_path_factory, pixels):
    file = tmp_path_factory.getbasetemp() / "bytes.npz"
    np.savez(file, images=pixels, labels=np.zeros(len(pixels), dtype=np.int64))
    images = open_dataset(f"npz:{file}").images
    back = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert (back.numpy() == pixels).all()


def test_the_classes_of_an_npz_come_from_the_whole_file_even_with_a_limit(save):
    assert open_dataset(save(images=IMAGES, labels=LABELS), limit=1).classes == 8


def test_an_npz_of_one_class_has_room_for_two(save):
    assert open_dataset(save(images=IMAGES, labels=np.zeros(4, dtype=int))).classes == 2


def test_an_npz_may_state_its_classes(save):
    assert open_dataset(save(images=IMAGES, labels=LABELS, classes=10)).classes == 10


@pytest.mark.parametrize("classes", [7, 10.0, [10, 10]])
def test_stated_classes_that_do_not_fit_are_refused(save, classes):
    with pytest.raises(DatasetError, match="classes as one whole number of at least 8"):
        open_dataset(save(images=IMAGES, labels=LABELS, classes=classes))


def test_a_limit_takes_a_prefix_of_an_npz(save):
    name = save(images=IMAGES, labels=LABELS)
    assert (
        open_dataset(name, limit=2).fingerprint()
        == open_dataset(name).take(torch.arange(2)).fingerprint()
    )


def test_the_name_of_an_npz_tells_no_folder(save):
    assert open_dataset(save(images=IMAGES, labels=LABELS)).name == "npz:mine.npz"


def test_a_tilde_is_the_home_folder(save, tmp_path, monkeypatch):
    save(images=IMAGES, labels=LABELS)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert len(open_dataset("npz:~/mine.npz")) == 4


def test_one_pixel_changes_the_fingerprint(save):
    first = open_dataset(save(images=IMAGES, labels=LABELS)).fingerprint()
    other = IMAGES.copy()
    other[0, 0, 0, 0] ^= 1
    assert open_dataset(save(images=other, labels=LABELS)).fingerprint() != first


def test_a_column_of_labels_is_read(save):
    data = open_dataset(save(images=IMAGES, labels=LABELS[:, None]))
    assert data.labels.tolist() == LABELS.tolist()


def test_images_are_in_the_usual_order_in_memory(save):
    images = np.asfortranarray(IMAGES.transpose(0, 3, 1, 2) / 255)
    assert open_dataset(save(images=images, labels=LABELS)).images.is_contiguous()


WRONG = {
    "truth values": ({"images": IMAGES > 127}, r"astype\('float32'\)"),
    "large integers": ({"images": IMAGES.astype("uint16") * 257}, r"scale them to floats"),
    "labels as names": ({"labels": np.array(["a", "b", "c", "d"])}, r"numpy\.unique"),
    "labels as one-hot rows": ({"labels": np.eye(4)}, r"argmax\(axis=1\)$"),
    "labels as soft rows": (
        {"labels": np.full((4, 3), 0.3)},
        r"if the largest of these soft labels",
    ),
    "labels that lack": (
        {"labels": np.array([0, 1, -1, -1])},
        "for 2 of 4 images; .*keep = labels >= 0",
    ),
    "images as integers": ({"images": IMAGES.astype(int)}, r"got int64 \(4, 6, 5, 3\); save bytes"),
    "flat images": (
        {"images": IMAGES.reshape(4, -1)},
        r"expected images as uint8 .* got uint8 \(4, 90\)",
    ),
    "floats without channels": (
        {"images": IMAGES[..., 0] / 255},
        r"float \(n, c, h, w\).* got float64",
    ),
    "bytes channels first": ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"transpose\(0, 2, 3, 1\)"),
    "floats channels last": ({"images": IMAGES / 255}, r"transpose\(0, 3, 1, 2\)"),
    "floats up to 255": ({"images": IMAGES.transpose(0, 3, 1, 2) * 1.0}, r"pixels in \[0, 1\]"),
    "labels as floats": ({"labels": LABELS * 1.0}, r"labels as whole numbers \(n,\), got float64"),
    "a negative label": ({"labels": LABELS - 1}, "labels from 0 on, got -1 for 1 of 4"),
    "too few labels": ({"labels": LABELS[:3]}, "got 4 images and 3 labels"),
    "no examples": ({"images": IMAGES[:0], "labels": LABELS[:0]}, "at least one image, got none"),
    "pickled labels": ({"labels": LABELS.astype(object)}, "plain numbers in 'labels'.*pickle"),
}


@pytest.mark.parametrize(("arrays", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arrays_are_refused_by_file_and_fault(save, arrays, message):
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(save(**({"images": IMAGES, "labels": LABELS} | arrays)))
    assert "mine.npz" in str(caught.value)


def test_nan_pixels_are_refused_with_their_row(save):
    images = as_floats(IMAGES).numpy()
    images[2, 0, 0, 0] = np.nan
    with pytest.raises(DatasetError, match="NaN first in row 2"):
        open_dataset(save(images=images, labels=LABELS))


def test_a_missing_array_gets_the_nearest_name(save):
    with pytest.raises(DatasetError, match=r"expected an array 'images'.*did you mean 'image'"):
        open_dataset(save(image=IMAGES, labels=LABELS))


@pytest.mark.parametrize(("images", "labels"), [("data", "targets"), ("x_test", "y_test")])
def test_the_usual_names_of_other_tools_are_known(save, images, labels):
    with pytest.raises(DatasetError, match=f"'images'.*did you mean '{images}'"):
        open_dataset(save(**{images: IMAGES, labels: LABELS}))
    with pytest.raises(DatasetError, match=f"'labels'.*did you mean '{labels}'"):
        open_dataset(save(images=IMAGES, **{labels: LABELS}))


def test_a_missing_array_without_a_near_name_lists_what_there_is(save):
    with pytest.raises(DatasetError, match="expected an array 'labels', got images, z: write one"):
        open_dataset(save(images=IMAGES, z=LABELS))


class Payload:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_in_an_npz_is_not_executed(save, tmp_path):
    name = save(images=np.array([Payload(tmp_path / "executed")], dtype=object), labels=LABELS)
    with pytest.raises(DatasetError, match="pickle"):
        open_dataset(name)
    assert not (tmp_path / "executed").exists()


def test_a_file_of_another_kind_is_refused_and_not_executed(tmp_path):
    (tmp_path / "mine.npz").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    with pytest.raises(DatasetError, match=r"mine\.npz.*damaged or of another kind"):
        open_dataset(f"npz:{tmp_path / 'mine.npz'}")
    assert not (tmp_path / "executed").exists()


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(DatasetError, match="npz file"):
        open_dataset("npz:" + "x" * 5000)


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "mine.npy", IMAGES)
    with pytest.raises(DatasetError, match="single array"):
        open_dataset(f"npz:{tmp_path / 'mine.npy'}")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A file to damage, and the bytes of a sound one."""
    file = tmp_path_factory.mktemp("npz") / "mine.npz"
    np.savez_compressed(file, images=IMAGES, labels=LABELS)
    return file, file.read_bytes()


@settings(deadline=None, max_examples=50)
@given(fraction=st.floats(0, 0.999))
def test_a_truncated_npz_is_refused(archive, fraction):
    file, sound = archive
    file.write_bytes(sound[: int(fraction * len(sound))])
    with pytest.raises(DatasetError, match=r"mine\.npz.*damaged"):
        open_dataset(f"npz:{file}")


@settings(deadline=None, max_examples=100)
@given(place=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_an_altered_npz_is_read_right_or_refused(archive, place, byte):
    file, sound = archive
    position = int(place * len(sound))
    file.write_bytes(sound[:position] + bytes([byte]) + sound[position + 1 :])
    try:
        data = open_dataset(f"npz:{file}")
    except DatasetError:
        return
    assert torch.equal(data.images, as_floats(IMAGES))


# Folders of images


@pytest.fixture
def tree(tmp_path, vision):
    """Two classes, `cat` with two images and `dog` with one.

    Returns the folder and the pixels in order.
    """
    pixels = random_bytes(3, 8, 16, 3, seed=1)
    for file, image in zip(("cat/a.png", "cat/b.png", "dog/a.png"), pixels, strict=True):
        write_image(tmp_path / "val" / file, image)
    return tmp_path / "val", pixels


def write_image(path: Path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_folder_is_read_in_sorted_order_with_its_folders_as_classes(tree):
    folder, pixels = tree
    data = open_dataset(f"folder:{folder}")
    assert_keeps_the_contract(data)
    assert torch.equal(data.images, as_floats(pixels))
    assert data.labels.tolist() == [0, 0, 1]
    assert data.ids == (0, 1, 2)
    assert (data.name, data.classes) == ("folder:val", 2)


def test_a_limit_spreads_over_the_classes_and_says_so(tree):
    data = open_dataset(f"folder:{tree[0]}", limit=2)
    assert data.labels.tolist() == [0, 1]
    assert data.classes == 2
    assert data.notes == ("2 of 3 images, spread over 2 classes by a keyed draw",)
    assert open_dataset(f"folder:{tree[0]}").notes == ()


def many_classes(folder, names, n=4):
    """Writes n images of each class; the first pixel is the number of the class in `names`."""
    for number, name in enumerate(names):
        for row in range(n):
            pixels = random_bytes(8, 8, 3, seed=row)
            pixels[0, 0] = number
            write_image(folder / name / f"{row}.png", pixels)
    return folder


def written_classes(data):
    """The numbers that `many_classes` wrote."""
    return (data.images[:, 0, 0, 0] * 255).round().int().tolist()


def test_a_larger_limit_includes_a_smaller_one_and_every_class_its_share(tmp_path, vision):
    folder = many_classes(tmp_path, ["a", "b", "c"])
    smaller = set()
    for limit in range(1, 13):
        data = open_dataset(f"folder:{folder}", limit=limit)
        assert smaller <= set(data.ids)
        assert list(data.ids) == sorted(data.ids)
        shares = np.bincount(data.labels, minlength=3)
        assert shares.max() - shares.min() <= 1
        smaller = set(data.ids)


def test_numeric_folders_sort_as_numbers_and_others_as_text(tmp_path, vision):
    numeric = many_classes(tmp_path / "numeric", [str(number) for number in range(12)])
    data = open_dataset(f"folder:{numeric}")
    assert data.labels.tolist() == written_classes(data)
    padded = many_classes(tmp_path / "padded", ["c1", "c10", "c2"])
    data = open_dataset(f"folder:{padded}")
    assert data.labels.tolist() == written_classes(data)


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/a.png",
        ".git/config",
        "__MACOSX/cat/._a.png",
        "cat/.ipynb_checkpoints/a-checkpoint.png",
        "cat/._a.png",
        "@eaDir/a.png",
        ".DS_Store",
    ],
)
def test_what_is_hidden_is_skipped_and_named(tree, hidden):
    folder, pixels = tree
    (folder / hidden).parent.mkdir(exist_ok=True, parents=True)
    (folder / hidden).write_bytes(b"\0\5\26\7")
    data = open_dataset(f"folder:{folder}")
    assert torch.equal(data.images, as_floats(pixels))
    assert data.classes == 2
    assert len(data.notes) == 1
    part = Path(hidden).parts[0] if hidden[0] in ".@_" else str(Path(*Path(hidden).parts[:2]))
    assert part in data.notes[0]


def test_splits_are_no_classes(tree):
    write_image(tree[0].parent / "train" / "cat" / "a.png", tree[1][0])
    with pytest.raises(DatasetError, match=r"only 'train' and other splits; did you mean '.*val'"):
        open_dataset(f"folder:{tree[0].parent}")


CLASS_LISTS = {
    "lines.txt": "emu\ndog\ncat\n",
    "more words.txt": "emu a bird\ndog a dog\ncat a cat\n",
    "list.json": '["emu", "dog", "cat"]',
    "index.json": '{"0": ["n1", "emu"], "1": ["n2", "dog"], "2": ["n3", "cat"]}',
    "numbers.json": '{"cat": 2, "emu": 0, "dog": 1}',
}


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_a_class_list_maps_a_part_of_the_classes(tree, tmp_path, name):
    (tmp_path / name).write_text(CLASS_LISTS[name])
    data = open_dataset(f"folder:{tree[0]}@7@classes={tmp_path / name}")
    assert data.labels.tolist() == [2, 2, 1]
    assert data.classes == 3
    assert data.name == f"folder:val@7@classes={name}"


def test_the_names_of_a_card_map_a_part_of_the_classes(tree):
    data = open_dataset(f"folder:{tree[0]}", class_names=("emu", "dog", "cat"))
    assert (data.labels.tolist(), data.classes) == ([2, 2, 1], 3)


def test_a_class_that_the_list_lacks_is_named(tree):
    with pytest.raises(DatasetError, match=r"among its 2 classes, got 'dog'"):
        open_dataset(f"folder:{tree[0]}", class_names=("emu", "cat"))


@pytest.mark.parametrize("text", ["", "one", "{", '{"1": "a"}', "3"])
def test_a_damaged_class_list_is_refused(tree, tmp_path, text):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DatasetError, match=r"list\.json': expected"):
        open_dataset(f"folder:{tree[0]}@classes={tmp_path / 'list.json'}")


@pytest.mark.parametrize("argument", ["@grey", "@7@grey", "@grey@7", "@grey,7"])
def test_grey_gives_one_channel(tree, argument):
    data = open_dataset(f"folder:{tree[0]}{argument}")
    assert data.images.shape[:2] == (3, 1)
    assert ("@7" in data.name) == ("7" in argument)


def test_grey_keeps_the_values_of_a_grey_image(tree):
    folder, pixels = tree
    for file in ("cat/a.png", "cat/b.png", "dog/a.png"):
        write_image(folder / file, pixels[0, ..., 0])
    images = open_dataset(f"folder:{folder}@grey").images
    assert torch.equal(images[0], as_floats(pixels[:1, ..., :1])[0])


def test_the_validation_set_of_tiny_imagenet_is_read_by_its_annotations(tmp_path, vision):
    pixels = random_bytes(4, 8, 8, 3)
    for row, image in enumerate(pixels):
        write_image(tmp_path / "images" / f"val_{row}.png", image)
    lines = [f"val_{row}.png\tn0{row % 2}\t0\t0\t1\t1" for row in range(4)]
    (tmp_path / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    data = open_dataset(f"folder:{tmp_path}")
    assert (data.labels.tolist(), data.classes) == ([0, 1, 0, 1], 2)
    assert torch.equal(data.images, as_floats(pixels))
    with pytest.raises(DatasetError, match=r"val_annotations\.txt"):
        open_dataset(f"folder:{tmp_path / 'images'}")


@pytest.mark.parametrize("line", ["a.png", "../a.png\tn00", "/etc/passwd\tn00"])
def test_a_wrong_line_of_annotations_is_named(tmp_path, line, vision):
    (tmp_path / "val_annotations.txt").write_text(f"a.png\tn00\n{line}\n")
    with pytest.raises(DatasetError, match=r"line 2: expected a file name and a class"):
        open_dataset(f"folder:{tmp_path}")


def test_a_limit_above_the_size_of_a_folder_says_how_many_there_are(tree):
    with pytest.raises(DatasetError, match=r"at least 4 examples .* got 3"):
        open_dataset(f"folder:{tree[0]}", limit=4)


def test_the_name_of_the_current_folder_is_its_own(tree, monkeypatch):
    monkeypatch.chdir(tree[0])
    assert open_dataset("folder:.").name == "folder:val"


def test_grey_images_become_rgb(tree):
    folder, pixels = tree
    for file in ("cat/a.png", "cat/b.png", "dog/a.png"):
        write_image(folder / file, pixels[0, ..., 0])
    images = open_dataset(f"folder:{folder}").images
    assert torch.equal(images[0], as_floats(pixels[:1, ..., :1])[0].expand(3, -1, -1))


def test_images_of_two_sizes_are_refused_with_both_and_the_remedy(tree):
    write_image(tree[0] / "dog" / "b.png", random_bytes(9, 5, 3))
    with pytest.raises(
        DatasetError, match=r"16x8 \('a.png'\) and 5x9 \('b.png'\); write folder:.*@SIZE"
    ):
        open_dataset(f"folder:{tree[0]}")


def test_a_size_crops_the_centre_where_the_shorter_side_already_fits(tree):
    folder, pixels = tree
    # The shorter side becomes 7 * 256 / 224 = 8, as it is.
    data = open_dataset(f"folder:{folder}@7")
    assert torch.equal(data.images, as_floats(pixels[:, 0:7, 4:11]))
    assert data.name == "folder:val@7"


def test_a_size_brings_images_of_all_sizes_to_one(tree):
    write_image(tree[0] / "dog" / "b.png", np.full((90, 70, 3), 51, dtype=np.uint8))
    images = open_dataset(f"folder:{tree[0]}@14").images
    assert images.shape == (4, 3, 14, 14)
    assert torch.allclose(images[3], torch.tensor(0.2))


def test_a_size_of_zero_is_part_of_a_path_that_does_not_exist(tree):
    with pytest.raises(DatasetError, match="val@0"):
        open_dataset(f"folder:{tree[0]}@0")


def test_a_single_class_is_refused_with_a_guess(tree):
    with pytest.raises(
        DatasetError, match=r"at least 2 class folders, got only 'val'; did you mean '.*val'"
    ):
        open_dataset(f"folder:{tree[0].parent}")


def test_an_empty_class_is_refused(tree):
    (tree[0] / "emu").mkdir()
    with pytest.raises(DatasetError, match=r"one sub-folder of images per class.*emu"):
        open_dataset(f"folder:{tree[0]}")


@pytest.mark.parametrize("length", [0, 20, 200])
def test_a_truncated_image_is_refused_by_name(tree, length):
    file = tree[0] / "dog" / "a.png"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DatasetError, match=r"a\.png': expected an image"):
        open_dataset(f"folder:{tree[0]}")


def test_an_image_whose_parts_do_not_fit_is_refused_by_name(tree):
    file = tree[0] / "dog" / "a.png"
    sound = file.read_bytes()
    # The pixels' stated length, too short.
    file.write_bytes(sound[:33] + (20).to_bytes(4, "big") + sound[37:])
    with pytest.raises(DatasetError, match=r"a\.png': expected an image"):
        open_dataset(f"folder:{tree[0]}")


def test_an_image_with_an_impossible_header_is_refused_by_name(tree):
    (tree[0] / "dog" / "b.ppm").write_bytes(b"P6\n1x 1\n255\n000")
    with pytest.raises(DatasetError, match=r"b\.ppm': expected an image"):
        open_dataset(f"folder:{tree[0]}")


# torchvision


def write_cifar(folder, *, batches, key, names):
    """Writes batches of three images with labels 0, 1, 2, 3, ....

    Returns the pixels, channels last.
    """
    folder.mkdir()
    pixels = random_bytes(3 * len(batches), 32, 32, 3, seed=2)
    for row, batch in enumerate(batches):
        part = slice(3 * row, 3 * row + 3)
        flat = pixels[part].transpose(0, 3, 1, 2).reshape(3, -1)
        (folder / batch).write_bytes(
            pickle.dumps({"data": flat, key: list(range(3 * row, 3 * row + 3))})
        )
    (folder / names[0]).write_bytes(pickle.dumps({names[1]: [str(name) for name in range(100)]}))
    return pixels


def write_idx(path, array):
    """Writes bytes in MNIST's format.

    A number with the rank, the shape as big-endian integers, the data.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = np.array([2048 + array.ndim, *array.shape], dtype=">i4")
    path.write_bytes(header.tobytes() + array.tobytes())


def write_mnist(folder):
    images, labels = random_bytes(5, 28, 28, seed=3), np.array([7, 2, 1, 0, 4], dtype=np.uint8)
    for part in ("train", "t10k"):
        write_idx(
            folder / "raw" / f"{part}-images-idx3-ubyte", images if part == "t10k" else images[::-1]
        )
        write_idx(
            folder / "raw" / f"{part}-labels-idx1-ubyte", labels if part == "t10k" else labels[::-1]
        )
    return images, labels


@pytest.fixture
def trusting(vision, monkeypatch):
    """Lets torchvision accept files that are not the published ones."""
    for module in ("cifar", "svhn"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)


def test_cifar10_is_read_from_its_batches_in_order(tmp_path, trusting):
    batches = [f"data_batch_{number}" for number in range(1, 4)]
    folder = tmp_path / "cifar-10-batches-py"
    pixels = write_cifar(
        folder, batches=batches, key="labels", names=("batches.meta", "label_names")
    )
    for number, source in ((4, 1), (5, 2)):
        (folder / f"data_batch_{number}").write_bytes(
            (folder / f"data_batch_{source}").read_bytes()
        )
    (folder / "test_batch").write_bytes((folder / "data_batch_2").read_bytes())
    train = open_dataset("cifar10", split="train", limit=8, data_dir=tmp_path)
    test = open_dataset("cifar10", data_dir=tmp_path)
    assert_keeps_the_contract(test)
    assert torch.equal(train.images, as_floats(pixels[:8]))
    assert train.labels.tolist() == list(range(8))
    assert torch.equal(test.images, as_floats(pixels[3:6]))
    assert (test.labels.tolist(), test.ids, test.classes) == ([3, 4, 5], (0, 1, 2), 10)


def test_cifar100_has_fine_labels(tmp_path, trusting):
    folder = tmp_path / "cifar-100-python"
    names = ("meta", "fine_label_names")
    pixels = write_cifar(folder, batches=["train", "test"], key="fine_labels", names=names)
    test = open_dataset("cifar100", data_dir=tmp_path)
    assert_keeps_the_contract(test)
    assert torch.equal(test.images, as_floats(pixels[3:]))
    assert (test.labels.tolist(), test.classes) == ([3, 4, 5], 100)


@pytest.mark.parametrize("split", ["train", "test"])
def test_svhn_calls_the_digit_zero_zero(tmp_path, trusting, split):
    pixels = random_bytes(3, 32, 32, 3, seed=4)
    arrays = {"X": pixels.transpose(1, 2, 3, 0), "y": np.array([[10], [1], [9]], dtype=np.uint8)}
    savemat(tmp_path / f"{split}_32x32.mat", arrays)
    data = open_dataset("svhn", split=split, data_dir=tmp_path)
    assert_keeps_the_contract(data)
    assert torch.equal(data.images, as_floats(pixels))
    assert (data.labels.tolist(), data.classes) == ([0, 1, 9], 10)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_svhn_names_the_file_of_its_split(tmp_path, vision, split):
    with pytest.raises(DatasetError, match=f"'{split}_32x32.mat' in the folder"):
        open_dataset("svhn", split=split, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_mnist_and_fashion_mnist_are_grey_and_know_their_splits(tmp_path, vision, name, folder):
    images, labels = write_mnist(tmp_path / folder)
    train = open_dataset(name, split="train", data_dir=tmp_path)
    test = open_dataset(name, limit=4, data_dir=tmp_path)
    assert_keeps_the_contract(test)
    assert torch.equal(test.images, as_floats(images[:4, ..., None]))
    assert test.labels.tolist() == labels[:4].tolist()
    assert train.labels.tolist() == labels[::-1].tolist()
    assert (test.name, test.classes) == (name, 10)


@pytest.mark.parametrize("length", [0, 2, 100])
def test_a_damaged_mnist_is_refused(tmp_path, vision, length):
    write_mnist(tmp_path / "MNIST")
    file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DatasetError, match="missing or damaged"):
        open_dataset("mnist", data_dir=tmp_path)


def test_a_failed_download_says_so(tmp_path, vision, monkeypatch):
    def fail(self):
        raise URLError("no route to host")

    monkeypatch.setattr(vision.CIFAR10, "download", fail)
    with pytest.raises(
        DatasetError, match=r"cannot download 'cifar-10-batches-py'.*no route to host"
    ):
        open_dataset("cifar10", data_dir=tmp_path, download=True)


@pytest.mark.parametrize("name", [*TORCHVISION, "folder:."])
def test_a_missing_torchvision_is_explained(name, monkeypatch):
    for module in ("torchvision", "torchvision.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"needs torchvision.*npz:FILE"):
        open_dataset(name)


def test_a_torchvision_that_does_not_fit_torch_is_explained(tmp_path, monkeypatch):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("torchvision", "torchvision.datasets"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(UsageError, match=r"torchvision::nms does not exist.*from the same index"):
        open_dataset("cifar10")


# Real images


@pytest.fixture
def real():
    folder = os.environ.get("RKD_TEST_DATA")
    if not folder:
        pytest.skip("RKD_TEST_DATA names no folder with real images")
    return Path(folder)


@pytest.mark.data
def test_real_cifar10_images_load_and_a_limit_takes_their_prefix(real):
    name = f"npz:{real / 'cifar10_test_1000.npz'}"
    whole, part = open_dataset(name), open_dataset(name, limit=200)
    assert whole.images.shape == (1000, 3, 32, 32)
    assert whole.classes == 10
    assert part.fingerprint() == whole.take(torch.arange(200)).fingerprint()
    assert part.fingerprint() != whole.fingerprint()
    assert whole.labels[:5].tolist() == [3, 8, 8, 0, 6]  # cat, ship, ship, airplane, frog
