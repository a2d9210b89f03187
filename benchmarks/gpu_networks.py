"""The networks that `make gpu` measures, and small ones in their place for a CPU."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from robustbench_kd.models import resnet, vit_tiny, wide_resnet


def resnet18() -> nn.Module:
    """Returns the ResNet-18 that the AutoAttack package ships, with its weights."""
    found = find_spec("pyautoattack")
    assert found, "pyautoattack is not installed: run 'make gpu-wheels' where there is a network"
    assert found.origin
    model = resnet.build()
    path = Path(found.origin).parent / "examples" / "model_test.pt"
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def random_wide_resnet() -> nn.Module:
    torch.manual_seed(0)
    return wide_resnet.build(depth=28, width=10).eval()


def random_vit() -> nn.Module:
    torch.manual_seed(0)
    return vit_tiny.build(width=384, depth=12, heads=6).eval()


def toy_resnet18() -> nn.Module:
    torch.manual_seed(0)
    return resnet.build(width=2).eval()


def toy_wide_resnet() -> nn.Module:
    torch.manual_seed(0)
    return wide_resnet.build(depth=10, width=1).eval()


def toy_vit() -> nn.Module:
    torch.manual_seed(0)
    return vit_tiny.build(width=12, depth=1, heads=2, patch=8).eval()
