"""Looks at the clean answers, and asks again with other images where they seem wrong."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from robustbench_kd.checkpoints.card import Normalisation
from robustbench_kd.checkpoints.normalisation import PRESETS
from robustbench_kd.core.errors import ModelError
from robustbench_kd.core.ledger import Entry
from robustbench_kd.core.records import Finding
from robustbench_kd.engine.passes.batching import with_fewer
from robustbench_kd.engine.passes.meter import EntryClock
from robustbench_kd.engine.probing.checkup import offered
from robustbench_kd.tensors.attack import weighted_mean
from robustbench_kd.tensors.clean_answers import Altered, CleanAnswers
from robustbench_kd.tensors.contracts import Dataset, Images, Logits
from robustbench_kd.tensors.oracle import Oracle

CLEAN_CHECKS = "clean-checks"
NO_NORMALISATION = "none"
_SAMPLE = 128
_BATCH = 64
_STREAM = "clean-checks"
_BRIGHTEST = 255  # the largest value of a pixel that is stored in one byte


def usual_normalisations(
    used: Normalisation | None, channels: int
) -> dict[str, Normalisation | None]:
    """Returns the normalisations to try on images of so many channels by name.

    The one in use is among them, under its usual name or its numbers.
    """
    usual: dict[str, Normalisation | None] = {NO_NORMALISATION: None}
    for name, preset in PRESETS.items():
        if len(preset.mean) in {1, channels}:
            usual[name] = preset
    return usual | {normalisation_name(used): used}


def normalisation_name(used: Normalisation | None) -> str:
    """Returns the usual name of a normalisation, or its numbers."""
    if used is None:
        return NO_NORMALISATION
    text = str(used)
    for name, preset in PRESETS.items():
        if str(preset) == text:
            return name
    return text


def clean_checks(
    oracle: Oracle, logits: Logits, data: Dataset, used: Normalisation | None
) -> Entry:
    """Returns what the checks of a clean pass find, and their cost.

    `logits` `(n, outputs)` are the answers to all images of the data set; `used` is the
    normalisation in front of the network. Raises `IncompleteError` where not even one image fits in
    memory.
    """
    clock = EntryClock(oracle.meter)
    rows = torch.arange(min(_SAMPLE, len(data))) * len(data) // min(_SAMPLE, len(data))
    sample = data.take(rows)
    answers = CleanAnswers(
        logits=logits,
        labels=data.labels,
        classes=data.classes,
        sample=rows,
        altered=tuple(_altered(oracle, sample, logits.shape[1], used)),
    )
    findings: list[Finding] = []
    for check in offered("clean"):
        findings += check(answers)
    return clock.entry(CLEAN_CHECKS, findings=findings)


def _altered(
    oracle: Oracle, sample: Dataset, outputs: int, used: Normalisation | None
) -> Iterator[Altered]:
    """Yields the changes of images that could explain a low accuracy."""

    def change(kind: str, name: str, remedy: str, images: Callable[[], Images]) -> Altered:
        return Altered(kind, name, remedy, lambda: _predicted(oracle, sample, images(), outputs))

    channels = sample.images.shape[1]
    usual = usual_normalisations(used, channels)
    for name, other in usual.items():
        if name == normalisation_name(used):
            continue
        yield change(
            "normalisation",
            f"normalisation {name}",
            f"give --normalisation {name}, or correct the card; if the network normalises its "
            "input itself, give none",
            partial(_renormalised, sample.images, other, used),
        )
        if other is not None:
            yield change(
                "undone",
                f"normalisation {name} undone first",
                "images are normalised twice: leave one normalisation out of your code",
                partial(_scaled_back, sample.images, other),
            )
    if channels == 3:
        yield change(
            "channels",
            "channels in the other order (BGR)",
            "save images[..., ::-1], or swap the channels in the model",
            partial(sample.images.flip, 1),
        )
    yield change(
        "axes",
        "height and width exchanged",
        "save images.transpose with height before width: arrays of uint8 are (n, height, width, c)",
        lambda: sample.images.transpose(2, 3).contiguous(),
    )
    yield change(
        "scale",
        f"pixels times {_BRIGHTEST}",
        "pixels are scaled twice, by the file and by the model, or were cast to whole numbers "
        "after scaling: divide by 255 once, as floats",
        lambda: sample.images * _BRIGHTEST,
    )


def _renormalised(
    images: Images, other: Normalisation | None, used: Normalisation | None
) -> Images:
    """Returns images that the normalisation in use turns into what another one would give."""
    wanted = images if other is None else (images - _column(other.mean)) / _column(other.std)
    return wanted if used is None else _scaled_back(wanted, used)


def _scaled_back(images: Images, normalisation: Normalisation) -> Images:
    return images * _column(normalisation.std) + _column(normalisation.mean)


def _column(numbers: tuple[float, ...]) -> Tensor:
    return torch.tensor(numbers).view(1, -1, 1, 1)


def _predicted(oracle: Oracle, sample: Dataset, images: Images, outputs: int) -> Tensor:
    """Returns the predicted classes, int64 `(m,)`; -1 where there are no finite logits.

    The same images get the same answer, and no later answer depends on it.
    """

    def asked(size: int) -> Tensor:
        ids = torch.tensor(sample.ids)
        found = []
        for rows in torch.split(torch.arange(len(ids)), size):
            answers = oracle.answers(images[rows], ids[rows], stream=_STREAM, draws=1)
            mean = weighted_mean(answers, oracle.weights(len(answers)))
            found.append(mean[:, :outputs].argmax(dim=1))
        return torch.cat(found)

    try:
        return with_fewer(min(_BATCH, len(images)), asked)
    except ModelError:  # no finite logits: it is the wrong change
        return torch.full_like(sample.labels, -1)
