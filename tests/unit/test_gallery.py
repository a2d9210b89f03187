"""Adversarial images on the report's page.

The right pixels, few of them, and no way out of the page.
"""

import base64
import io
import re

import numpy as np
import pytest
from fake_runs import store
from PIL import Image

from robustbench_kd.analysis.gallery import galleries, png
from robustbench_kd.analysis.report import read_report, render
from robustbench_kd.core.rundir import ADVERSARIAL, RECORD, read_record
from robustbench_kd.tensors.stored_images import SHOWN, StoredImages, write

POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')


def exhibit(folder, images, originals=None):
    """Stores images, whose originals are grey, beside a run."""
    n = len(images)
    numbers = {
        "ids": np.arange(n),
        "labels": np.arange(n) % 10,
        "predictions": (np.arange(n) + 1) % 10,
    }
    grey = np.full_like(images[:SHOWN], 0.5) if originals is None else originals
    write(
        folder / ADVERSARIAL,
        StoredImages("r", "linf:8/255", **numbers, images=images, originals=grey),
    )


def shown(folder):
    problems = []
    found = galleries([(read_record(folder / RECORD), folder)], problems)
    assert problems == []
    return found


def pixels(one):
    head, _, content = one.source.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_read_by_others_as_it_was_written(channels):
    made = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    read = np.asarray(Image.open(io.BytesIO(png(made))))
    assert np.array_equal(read.reshape(made.shape), made)


def test_an_exhibit_shows_original_enlarged_change_and_result(tmp_path):
    folder = store(tmp_path)
    exhibit(folder, np.full((1, 3, 2, 2), 0.52, dtype=np.float32))
    (gallery,) = shown(folder)
    (one,) = gallery.exhibits
    assert (one.index, one.label, one.prediction) == (0, 0, 1)
    assert pixels(one)[0, :, 0].tolist() == [128, 128, 178, 178, 133, 133]


def test_what_is_no_number_or_outside_the_box_can_be_shown(tmp_path):
    folder = store(tmp_path)
    exhibit(folder, np.array([[[[np.nan, np.inf], [-5.0, 9.0]]]], dtype=np.float32))
    assert pixels(shown(folder)[0].exhibits[0])[:, 4:].tolist() == [[0, 255], [0, 255]]


@pytest.mark.parametrize(("side", "count"), [(8, 8), (32, 8), (64, 2), (224, 2)])
def test_the_larger_the_images_the_fewer_are_shown(tmp_path, side, count):
    folder = store(tmp_path)
    exhibit(folder, np.random.default_rng(0).random((20, 3, side, side), dtype=np.float32))
    exhibits = shown(folder)[0].exhibits
    assert len(exhibits) == count
    assert sum(len(one.source) for one in exhibits) < 120_000


def test_images_that_are_neither_grey_nor_coloured_are_not_shown(tmp_path):
    folder = store(tmp_path)
    exhibit(folder, np.zeros((2, 4, 3, 3), dtype=np.float32))
    assert shown(folder) == ()


def test_the_page_shows_images_and_allows_no_other_source(tmp_path):
    exhibit(store(tmp_path), np.zeros((3, 1, 8, 8), dtype=np.float32))
    page = render(read_report(tmp_path))
    assert page.count("<img ") == 3
    assert "image 2: 2 taken for 3" in page
    assert "img-src data:;" in POLICY.search(page)[1]


def test_a_page_without_images_allows_none(tmp_path):
    store(tmp_path)
    page = render(read_report(tmp_path))
    assert "Adversarial images" not in page
    assert "img-src" not in POLICY.search(page)[1]


def test_a_damaged_file_is_left_out_and_named(tmp_path):
    (store(tmp_path) / ADVERSARIAL).write_bytes(b"garbage")
    report = read_report(tmp_path)
    assert "cannot read images from" in report.left_out[0]
    assert "Adversarial images" not in render(report)
