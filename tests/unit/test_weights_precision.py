"""Integers are no weights, and lower precision is said."""

import pytest
import torch
from torch import nn

from robustbench_kd.checkpoints.state import Found, load_state
from robustbench_kd.core.errors import CheckpointError


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_integers_in_float_parameters_are_refused(kind: torch.dtype) -> None:
    state = {name: value.to(kind) for name, value in nn.Linear(2, 2).state_dict().items()}

    with pytest.raises(CheckpointError, match=r"'w.pth': expected floating-point weights"):
        load_state(nn.Linear(2, 2), Found(state, "w.pth", ()))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_lower_precision_is_said(kind: torch.dtype) -> None:
    state = {name: value.to(kind) for name, value in nn.Linear(2, 2).state_dict().items()}
    network = nn.Linear(2, 2)

    _, notes = load_state(network, Found(state, "w.pth", ()))

    name = str(kind).removeprefix("torch.")
    assert notes == [f"2 tensors are stored in lower precision ({name})"]
    assert torch.equal(network.weight, state["weight"].float())


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_full_precision_and_integer_counters_need_no_word(kind: torch.dtype) -> None:
    state = nn.BatchNorm1d(2).to(kind).state_dict()

    _, notes = load_state(nn.BatchNorm1d(2), Found(state, "w.pth", ()))

    assert notes == []
