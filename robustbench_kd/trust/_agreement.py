"""How well answers agree with labels: by chance, and after the classes are renamed."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import bdtr, gammainc
from torch import Tensor

from robustbench_kd.tensors.contracts import Labels
from robustbench_kd.tensors.ranks import rank_in_class

_RARE = 0.05
# A network that is worth an evaluation makes at least so much of the way from chance to perfect.
# Robust networks of CIFAR-10 and ImageNet make over 0.3.
_LEAST_SKILL = 0.2
_FOLDS = 5


def tells_nothing(predictions: Tensor, labels: Labels, classes: int) -> bool:
    """Returns whether answers `(n,)` say no more of the labels than chance would.

    That is so if they cannot be told from answers that are dealt out at random, although those of
    a network with some skill could; a handful of images never proves it. All images are looked at,
    and those alone whose label is not the favourite answer: a model that nearly always gives one
    answer is right wherever that is the label.
    """
    favourite = predictions.mode().values
    others = labels != favourite
    if len(torch.unique(labels)) < 2:
        return False
    return _no_better(predictions, labels, classes) or _no_better(
        predictions[others], labels[others], classes
    )


def _no_better(predictions: Tensor, labels: Labels, classes: int) -> bool:
    n = len(labels)
    right = int((predictions == labels).sum())
    if n == 0 or (right and len(torch.unique(labels)) < 2):
        return False

    # So many are right if the same answers are dealt out at random; the number is nearly Poisson.
    size = int(max(predictions.max(), labels.max())) + 1
    answered = torch.bincount(predictions, minlength=size).double()
    expected = float(answered @ torch.bincount(labels, minlength=size).double()) / n
    is_lucky = right > 0 and gammainc(right, expected) <= _RARE

    skilled = 1 / classes + _LEAST_SKILL * (1 - 1 / classes)
    return not is_lucky and bool(bdtr(right, n, skilled) <= _RARE)


def renaming(predictions: Tensor, labels: Labels) -> dict[int, int]:
    """Returns the one-to-one renaming of labels to classes with the most matches.

    Labels that match no answer are left out.
    """
    names, rows = torch.unique(labels, return_inverse=True)
    answers, columns = torch.unique(predictions, return_inverse=True)
    matches = torch.zeros(len(names), len(answers), dtype=torch.int64)
    matches.index_put_((rows, columns), torch.ones_like(rows), accumulate=True)

    found = linear_sum_assignment(np.asarray(matches), maximize=True)
    pairs = zip(*(side.tolist() for side in found), strict=True)
    return {int(names[row]): int(answers[column]) for row, column in pairs if matches[row, column]}


def right_after_renaming(predictions: Tensor, labels: Labels) -> Tensor:
    """Returns which images are right, bool `(n,)`, by a renaming that follows from other images.

    A renaming that is fitted to the same images flatters: with one image of each class it makes
    all of them right.
    """
    folds = rank_in_class(labels) % _FOLDS
    right = torch.zeros(len(labels), dtype=torch.bool)
    for fold in torch.unique(folds):
        inside = folds == fold
        if bool(inside.all()):
            continue
        names = renaming(predictions[~inside], labels[~inside])
        wanted = torch.tensor([names.get(label, -1) for label in labels[inside].tolist()])
        right[inside] = predictions[inside] == wanted
    return right
