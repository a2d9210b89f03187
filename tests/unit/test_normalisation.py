"""Normalisations: by name or by numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.checkpoints.card import Normalisation
from robustbench_kd.checkpoints.normalisation import PRESETS, parse_normalisation
from robustbench_kd.core.errors import UsageError

WRONG = ("0.5/0", "0.5/-1", "0.5,0.5/1", "a/b", "/", "0.5/0.5/0.5", "0.5/nan", "inf/1")


def test_a_normalisation_is_read_by_name_and_by_numbers():
    assert parse_normalisation("none") is None
    assert parse_normalisation("imagenet") is PRESETS["imagenet"]
    assert parse_normalisation("0.5,0.25,0/1,2,0.1") == Normalisation(
        mean=(0.5, 0.25, 0.0), std=(1.0, 2.0, 0.1)
    )


@given(
    pairs=st.lists(st.tuples(st.integers(-999, 999), st.integers(1, 999)), min_size=1, max_size=4)
)
def test_a_normalisation_is_written_as_it_is_read(pairs):
    means, deviations = zip(*pairs, strict=True)
    normalisation = Normalisation(
        mean=[mean / 1000 for mean in means], std=[std / 1000 for std in deviations]
    )
    assert parse_normalisation(str(normalisation)) == normalisation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cifar", "unknown normalisation 'cifar': did you mean 'cifar10'?"),
        ("0.5", "unknown normalisation '0.5'"),
        *((text, f"as many positive deviations as means, got '{text}'") for text in WRONG),
    ],
)
def test_a_wrong_normalisation_is_refused(text, expected):
    with pytest.raises(UsageError) as caught:
        parse_normalisation(text)
    assert expected in str(caught.value)
