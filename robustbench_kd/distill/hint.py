"""FitNets (Romero et al. 2015): a regressor maps features of the student to the teacher."""

from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import nn

from robustbench_kd.core.errors import UsageError
from robustbench_kd.tensors.distillation import (
    PENULTIMATE,
    BatchContext,
    MethodOptions,
    Setup,
    Terms,
    feature_shape,
)
from robustbench_kd.tensors.losses import cross_entropy


class Options(MethodOptions):
    """The weights, where the features are taken, and how they are compared.

    Needs features of student and teacher: the output of the module that a layer's path names, such
    as `layer2`, or the input of the last linear layer where it is empty. Defaults are those of
    RepDistiller (`train_student.py`, commit 7fd6eff, `scripts/run_cifar_distill.sh`): weights 1 and
    100 and the features after the second stage; the layers depend on the architectures, so that
    here they must be named. Ojha et al. 2023 weigh 1 and 5 on ImageNet.

    `distance` is `mean`, the mean squared error over all entries (RepDistiller), or `half_sum`,
    half the squared distance of an example (FitNets, Ojha et al.). `activated` ends the regressor
    of feature maps in batch normalisation and ReLU, as in RepDistiller (`models/util.py`, ConvReg);
    features that may be negative want it off.
    """

    label_weight: NonNegativeFloat = 1.0
    hint_weight: NonNegativeFloat = 100.0
    student_layer: str = PENULTIMATE
    teacher_layer: str = PENULTIMATE
    distance: Literal["mean", "half_sum"] = "mean"
    activated: bool = True


def prepare(setup: Setup, options: Options) -> nn.Module:
    """Returns the regressor from the student's features to the teacher's."""
    found = feature_shape(setup.student, setup.images, options.student_layer)
    expected = feature_shape(setup.teachers[0], setup.images, options.teacher_layer)
    return _regressor(found, expected, activated=options.activated).to(setup.images.device)


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns CE(S(x), y) and the distance of the regressed features from the teacher's, weighted.

    Source: arXiv 1412.6550.
    """
    features = context.student.features(context.images, options.student_layer)
    expected = context.teacher.features(context.images, options.teacher_layer)
    gap = (context.helper(features) - expected).square()
    distance = gap.mean() if options.distance == "mean" else gap.flatten(1).sum(dim=1).mean() / 2
    return {
        "labels": options.label_weight
        * cross_entropy(context.student(context.images), context.labels).mean(),
        "hint": options.hint_weight * distance,
    }


def _regressor(found: torch.Size, expected: torch.Size, *, activated: bool) -> nn.Module:
    if len(found) != len(expected) or len(found) not in {1, 3}:
        raise UsageError(
            f"expected two vectors or two feature maps for a hint, got {_said(found)} and "
            f"{_said(expected)}: name other layers"
        )
    if len(found) == 1:
        return nn.Linear(found[0], expected[0])
    tail = [nn.BatchNorm2d(expected[0]), nn.ReLU()] if activated else []
    return nn.Sequential(_resizing(found, expected), *tail)


def _resizing(found: torch.Size, expected: torch.Size) -> nn.Module:
    """Returns a convolution between two shapes of feature maps, by RepDistiller's rule."""
    channels, (side, across), (goal, wide) = (found[0], expected[0]), found[1:], expected[1:]
    if side == 2 * goal and across == 2 * wide:
        return nn.Conv2d(*channels, 3, stride=2, padding=1)
    if 2 * side == goal and 2 * across == wide:
        return nn.ConvTranspose2d(*channels, 4, stride=2, padding=1)
    if side >= goal and across >= wide:
        return nn.Conv2d(*channels, (1 + side - goal, 1 + across - wide))
    raise UsageError(
        f"a hint of {_said(expected)} is too large for features of {_said(found)}: name other "
        "layers"
    )


def _said(shape: torch.Size) -> str:
    return "x".join(map(str, shape))
