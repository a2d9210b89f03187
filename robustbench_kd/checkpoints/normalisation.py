"""Reads an input normalisation: `none`, the usual statistics of a data set, or numbers."""

from robustbench_kd.checkpoints.card import Normalisation
from robustbench_kd.core.errors import UsageError, unknown_name

# The statistics that published training code uses for each data set; `half` maps [0, 1] to [-1, 1].
PRESETS = {
    "cifar10": Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616)),
    "cifar10-0.2": Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "cifar100": Normalisation(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
    "svhn": Normalisation(mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970)),
    "mnist": Normalisation(mean=(0.1307,), std=(0.3081,)),
    "fashion-mnist": Normalisation(mean=(0.2860,), std=(0.3530,)),
    "imagenet": Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "half": Normalisation(mean=(0.5,), std=(0.5,)),
}


def parse_normalisation(text: str) -> Normalisation | None:
    """Reads `cifar10`, `none` or `0.5,0.5,0.5/0.25,0.25,0.25` (means / standard deviations).

    >>> parse_normalisation("0.5/0.25").std
    (0.25,)
    """
    if text == "none":
        return None
    if text in PRESETS:
        return PRESETS[text]
    mean, separator, std = text.partition("/")
    if not separator:
        raise unknown_name("normalisation", text, ["none", *PRESETS, "MEAN,.../STD,..."])
    try:
        return Normalisation(mean=_numbers(mean), std=_numbers(std))
    except ValueError:
        raise UsageError(
            f"expected MEAN,.../STD,... with as many positive deviations as means, got '{text}'"
        ) from None


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
