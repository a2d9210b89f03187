"""Images that decided: those that an evaluation stores, and the file that holds them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import conv, images_for, request
from safetensors.numpy import save

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.examples import read_examples
from robustbench_kd.core.rundir import ADVERSARIAL, EXAMPLES, RECORD
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.engine.record import merge
from robustbench_kd.tensors.geometry import inside
from robustbench_kd.tensors.stored_images import SHOWN, StoredImages, read, write


@pytest.fixture(scope="module")
def model():
    return conv()


@pytest.fixture(scope="module")
def data(model):
    return images_for(model, n=10, wrong=1)


def request_for(model, data, *, threat="linf:0.02", **options):
    return request(model, data, threat=threat, **{"batch_size": 5, "saves": True, **options})


def images_of(outcome):
    return read(outcome.folder / ADVERSARIAL)


def stored(n=3, **changed):
    pixels = np.zeros((n, 1, 2, 2), dtype=np.float32)
    numbers = {name: np.arange(n) for name in ("ids", "labels", "predictions")}
    fields = {"run": "r", "threat": "linf:1", "images": pixels, "originals": pixels}
    return StoredImages(**{**fields, **numbers, **changed})


# The images that are stored


@pytest.mark.parametrize("engine", ["native", "autoattack"])
def test_each_broken_example_has_an_image_inside_the_ball_that_fools_the_model(
    model, data, tmp_path, engine
):
    outcome = evaluate(request_for(model, data, engine=engine), tmp_path)
    found = images_of(outcome)
    examples = read_examples(outcome.folder / EXAMPLES)
    broken = [row.index for row in examples if row.broken_by not in {"", "clean"}]
    assert found.ids.tolist() == broken
    assert broken
    rows = [data.ids.index(example) for example in found.ids.tolist()]
    true = data.take(torch.tensor(rows))
    images = torch.from_numpy(found.images)
    assert inside(images, true.images, 0.02, Norm.LINF).all()
    assert model(images).argmax(dim=1).tolist() == found.predictions.tolist()
    assert (found.predictions != found.labels).all()
    assert found.labels.tolist() == true.labels.tolist()
    assert torch.equal(torch.from_numpy(found.originals), true.images[:SHOWN])
    assert (found.run, found.threat) == (outcome.folder.name, "linf:0.02")


def test_storing_images_changes_neither_verdicts_nor_the_name_of_the_run(model, data, tmp_path):
    plain = evaluate(request_for(model, data, saves=False), tmp_path / "plain")
    storing = evaluate(request_for(model, data), tmp_path / "storing")
    assert plain.folder.name == storing.folder.name
    assert (plain.folder / EXAMPLES).read_text() == (storing.folder / EXAMPLES).read_text()
    assert not (plain.folder / ADVERSARIAL).exists()


def test_a_run_that_nothing_broke_has_a_file_without_images(model, data, tmp_path):
    outcome = evaluate(request_for(model, data, threat="linf:0.000001"), tmp_path)
    assert images_of(outcome).images.shape == (0, 3, 8, 8)


def test_a_stored_result_without_images_is_evaluated_again_and_with_them_returned(
    model, data, tmp_path
):
    evaluate(request_for(model, data, saves=False), tmp_path)
    again = evaluate(request_for(model, data), tmp_path)
    assert (again.stored, again.again) == (False, True)
    last = evaluate(request_for(model, data), tmp_path)
    assert (last.stored, last.again) == (True, False)


def test_a_new_evaluation_without_images_removes_those_of_the_earlier_one(model, data, tmp_path):
    outcome = evaluate(request_for(model, data), tmp_path)
    evaluate(request_for(model, data, saves=False), tmp_path, fresh=True)
    assert not (outcome.folder / ADVERSARIAL).exists()


def interrupted(wanted, results):
    def interrupt(progress):
        if progress.stage == "apgd-dlr":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(wanted, results, observer=interrupt)


@pytest.mark.parametrize("engine", ["native", "autoattack"])
@pytest.mark.parametrize("saves", [True, False], ids=["same", "plain"])
def test_an_interrupted_run_ends_with_the_same_images_however_it_is_resumed(
    model, data, tmp_path, engine, saves
):
    wanted = request_for(model, data, engine=engine, suite="apgd-ce,apgd-dlr")
    expected = images_of(evaluate(wanted, tmp_path / "undisturbed"))
    interrupted(wanted, tmp_path / "resumed")
    resumed = images_of(evaluate(replace(wanted, saves=saves), tmp_path / "resumed"))
    assert resumed.ids.tolist() == expected.ids.tolist()
    assert np.array_equal(resumed.images, expected.images)


def test_an_unfinished_run_without_images_starts_again_when_they_are_asked_for(
    model, data, tmp_path
):
    wanted = request_for(model, data, suite="apgd-ce,apgd-dlr")
    interrupted(replace(wanted, saves=False), tmp_path)
    outcome = evaluate(wanted, tmp_path)
    assert outcome.again
    expected = images_of(evaluate(wanted, tmp_path / "undisturbed"))
    assert images_of(outcome).ids.tolist() == expected.ids.tolist()


def test_the_images_are_on_disk_before_the_record_is(model, data, tmp_path, monkeypatch):
    def fail(*_):
        raise RecordError("the disk is full")

    monkeypatch.setattr(merge, "write_record", fail)
    with pytest.raises(RecordError):
        evaluate(request_for(model, data), tmp_path)
    (images,) = tmp_path.glob(f"*/*/{ADVERSARIAL}")
    assert not (images.parent / RECORD).exists()


def test_examples_that_a_smaller_radius_broke_keep_their_images(model, data, tmp_path):
    small = evaluate(request_for(model, data), tmp_path)
    large = evaluate(request_for(model, data, threat="linf:0.05", smaller=small.folder), tmp_path)
    first = images_of(small)
    both = images_of(large)
    carried = np.isin(both.ids, first.ids)
    assert 0 < carried.sum() < len(both.ids)
    assert np.array_equal(both.images[carried], first.images)


def test_a_smaller_radius_without_images_is_refused(model, data, tmp_path):
    small = evaluate(request_for(model, data, threat="linf:0.01", saves=False), tmp_path)
    with pytest.raises(
        RecordError, match=r"cannot read images from .*; evaluate it again with --save-adversarial"
    ):
        evaluate(request_for(model, data, smaller=small.folder), tmp_path)


# The file


def test_a_file_reads_back_completely_or_its_first_images(tmp_path):
    images = np.random.default_rng(0).random((12, 3, 4, 5), dtype=np.float32)
    write(tmp_path / "a", stored(12, images=images, originals=images[:SHOWN]))
    assert np.array_equal(read(tmp_path / "a").images, images)
    first = read(tmp_path / "a", most=2)
    assert first.ids.tolist() == [0, 1]
    assert first.images.shape == (2, 3, 4, 5)
    assert first.originals.shape == (2, 3, 4, 5)
    assert Threat.parse(first.threat).eps == 1


WRONG = {
    "several for one": {"ids": np.array([0, 1, 1])},
    r"expected ids of type and shape \('I64', \(3,\)\)": {"ids": np.arange(4)},
    "expected labels of type": {"labels": np.zeros(3, dtype=np.float32)},
    "expected images of type": {"images": np.zeros((3, 1, 2, 2))},
    "expected predictions of type": {
        "images": np.zeros((2, 1, 2, 2), dtype=np.float32),
        "ids": np.arange(2),
        "labels": np.arange(2),
    },
    r"expected \w+ of type": {"images": np.zeros((3, 4), dtype=np.float32)},
    "expected originals of type": {"originals": np.zeros((2, 1, 2, 2), dtype=np.float32)},
}


@pytest.mark.parametrize("message", WRONG)
def test_tensors_of_another_type_or_shape_are_refused(tmp_path, message):
    write(tmp_path / "a", stored(**WRONG[message]))
    with pytest.raises(RecordError, match=message):
        read(tmp_path / "a")


@pytest.mark.parametrize(
    "header", [None, {"schema_version": "2", "run": "r", "threat": "t"}, {"schema_version": "1"}]
)
def test_another_kind_of_file_is_refused(tmp_path, header):
    (tmp_path / "a").write_bytes(save({"ids": np.arange(3)}, header))
    with pytest.raises(RecordError, match="expected images of schema 1"):
        read(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x10\0\0\0\0\0\0\0not json"])
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(RecordError, match="cannot read images from"):
        read(tmp_path / "a")
