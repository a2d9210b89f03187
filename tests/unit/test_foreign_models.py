"""Models with habits of published code: they are asked with care, and fail in one line."""

import sys
import tempfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from robustbench_kd.cli import _group
from robustbench_kd.core.errors import ModelError
from robustbench_kd.engine.passes import surfaces
from robustbench_kd.engine.passes.batch_size import batch_size
from robustbench_kd.tensors.oracle import Oracle, full_precision

CPU = torch.device("cpu")


class _InPlace(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mul_(2).flatten(1)[:, :3]


class _Drawing(nn.Module):
    def draw(self, canvas: Tensor) -> Tensor:
        return canvas

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3]


class _Numpy(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(images.numpy()).flatten(1)[:, :3]


def test_a_model_that_writes_into_its_argument_never_changes_the_images() -> None:
    images = torch.rand(4, 1, 2, 2)
    before = images.clone()
    oracle = Oracle(_InPlace(), CPU)
    oracle.logits(images)
    points = images.clone().requires_grad_()
    key = None  # a deterministic defence draws nothing
    answer = surfaces.own(oracle, 1).answer(points, key)  # type: ignore[arg-type]

    assert torch.equal(images, before)
    assert torch.equal(points, before)
    (gradient,) = torch.autograd.grad(answer.sum(), points)
    assert float(gradient.sum()) == 2 * 3 * 4


def test_a_method_draw_of_another_signature_is_no_randomness() -> None:
    assert not Oracle(_Drawing(), CPU).randomized


def test_tuning_falls_back_to_forward_passes() -> None:
    assert batch_size(Oracle(_Numpy(), CPU), torch.rand(4, 1, 2, 2), CPU, most=4) <= 4


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_model_is_frozen() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    oracle = Oracle(scripted, CPU)
    assert oracle.logits(torch.rand(2, 1, 2, 2)).shape == (2, 3)
    assert not any(parameter.requires_grad for parameter in scripted.parameters())


def test_a_model_that_cannot_be_frozen_is_refused_in_one_line() -> None:
    class Broken(nn.Module):
        def train(self, mode: bool = True) -> "Broken":
            raise RuntimeError("no modes")

    with pytest.raises(ModelError, match=r"cannot be frozen.*no modes"):
        Oracle(Broken(), CPU)


def test_full_precision_after_the_newer_switches() -> None:
    convolution = torch.backends.cudnn.conv
    before = convolution.fp32_precision
    try:
        convolution.fp32_precision = "ieee"
        with full_precision():
            assert torch.backends.cudnn.rnn.fp32_precision == "ieee"
        assert convolution.fp32_precision == "ieee"
    finally:
        convolution.fp32_precision = before


def test_an_unforeseen_error_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_arguments: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(_group.Commands, "get_command", fail)
    result = CliRunner().invoke(_group.main, ["eval", str(tmp_path)])
    assert result.exit_code == 70
    assert "please report" in result.output
    kept = Path(result.output.split("'")[-2])
    assert "KeyError: 'lost'" in kept.read_text()
    kept.unlink()
    assert "Traceback" not in result.output
    assert sys.exc_info() == (None, None, None)
