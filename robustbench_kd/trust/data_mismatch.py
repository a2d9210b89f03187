"""Images or labels are not what the network was trained on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from robustbench_kd.core.mcnemar import mcnemar_drop
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.clean_answers import CleanAnswers
from robustbench_kd.trust._agreement import renaming, right_after_renaming, tells_nothing

_CHECK = "data-mismatch"
_GAIN = 0.1  # of accuracy, as in `normalisation`
# One-sided, exact; half of it where the best of several changes counts. Then no honest network is
# concerned on any 5 to 100 consecutive images.
_SIGNIFICANT = 0.02
_MOST_NAMED = 5
_CLOSE = 0.05  # of accuracy: changes of one kind that differ by less are not told apart


@dataclass(frozen=True)
class _Explanation:
    """What could be wrong, what to do then, the gain in accuracy, and its chance by luck alone."""

    name: str
    remedy: str
    gain: float
    luck: float

    @property
    def is_proved(self) -> bool:
        """Returns whether it explains a low accuracy."""
        return self.gain > _GAIN and self.luck <= _SIGNIFICANT


def clean(answers: CleanAnswers) -> list[Finding]:
    """Returns a red finding if the clean answers do not fit the labels.

    That is so where they say no more of the labels than chance would, or where another input or
    other labels make the clean accuracy ten points higher, and significantly. Nothing is tried
    where ten points cannot be gained.
    """
    right = answers.predictions == answers.labels
    accuracy = float(right.float().mean())
    if accuracy >= 1 - _GAIN:
        return []

    tried = sorted(_tried(answers, right), key=lambda one: -one.gain)
    proved = [one for one in tried if one.is_proved]
    is_chance = tells_nothing(answers.predictions, answers.labels, answers.classes)
    if not is_chance and not proved:
        return []

    advice = "check weights, labels and the order of classes: the network may be untrained, or of "
    advice += "other data"
    if proved:
        advice = proved[0].remedy
    return [
        Finding(
            check=_CHECK,
            severity=Severity.RED,
            message=f"{_observed(answers, accuracy, is_chance=is_chance)}; tried, best first, with "
            f"the points that each would gain: {', '.join(map(_spelled, tried))}",
            advice=advice,
            value=accuracy,
            threshold=1 / answers.classes,
        )
    ]


def _observed(answers: CleanAnswers, accuracy: float, *, is_chance: bool) -> str:
    text = f"clean accuracy is {accuracy:.1%} on {len(answers.labels)} images"
    if is_chance:
        text += ", no better than chance"
    if answers.outputs != answers.classes:
        text += (
            f"; the model tells {answers.outputs:,} classes apart, the data set has "
            f"{answers.classes:,}"
        )
    return text


def _spelled(one: _Explanation) -> str:
    return f"{one.name} {100 * one.gain:+.1f}"


def _tried(answers: CleanAnswers, right: Tensor) -> Iterator[_Explanation]:
    yield from _with_other_images(answers, right)
    yield from _with_other_labels(answers, right)


def _with_other_images(answers: CleanAnswers, right: Tensor) -> Iterator[_Explanation]:
    """Yields the best change of each kind."""
    labels = answers.labels[answers.sample]
    before = right[answers.sample]
    kinds: dict[str, list[_Explanation]] = {}
    for change in answers.altered:
        found = _explained(change.name, change.remedy, before, change.ask() == labels)
        kinds.setdefault(change.kind, []).append(found)
    yield from map(_best, kinds.values())


def _with_other_labels(answers: CleanAnswers, right: Tensor) -> Iterator[_Explanation]:
    predictions, labels = answers.predictions, answers.labels
    shifts = [
        _explained(_SHIFTED[step], _UNSHIFT[step], right, predictions == labels + step)
        for step in _SHIFTED
    ]
    yield _best(shifts)

    if answers.outputs > answers.classes:
        fewer = answers.logits[:, : answers.classes].argmax(dim=1)
        yield _explained(
            f"only the first {answers.classes:,} classes of the model",
            "the data set has a part of the classes: name them, folder:PATH@classes=FILE",
            right,
            fewer == labels,
        )
    yield _explained(
        f"classes renamed one to one{_renamed(predictions, labels)}",
        "bring the classes into the order of the model: folder:PATH@classes=FILE, class_names in "
        "the card, or other labels",
        right,
        right_after_renaming(predictions, labels),
    )


_SHIFTED = {
    1: "labels shifted by one (label c is class c + 1 of the model)",
    -1: "labels shifted by one (label c is class c - 1 of the model)",
}
_UNSHIFT = {
    1: "add 1 to all labels, or leave the first output of the model out: it may be a background "
    "class",
    -1: "subtract 1 from all labels: they are counted from 1",
}


def _renamed(predictions: Tensor, labels: Tensor) -> str:
    """Returns the first classes that get another name."""
    other = [(old, new) for old, new in renaming(predictions, labels).items() if old != new]
    named = [f"{old} is {new}" for old, new in other[:_MOST_NAMED]]
    if len(other) > _MOST_NAMED:
        named.append("...")
    return f" ({', '.join(named)})" if named else ""


def _explained(name: str, remedy: str, before: Tensor, after: Tensor) -> _Explanation:
    gained = int((after & ~before).sum())
    lost = int((before & ~after).sum())
    luck = mcnemar_drop(lost=gained, gained=lost)
    return _Explanation(name, remedy, (gained - lost) / len(before), luck)


def _best(kind: list[_Explanation]) -> _Explanation:
    """Returns the change of one kind that gains most; the best of several is lucky more often.

    Where others gain nearly as much, it says so: a few images do not tell them apart.
    """
    best = max(kind, key=lambda one: one.gain)
    close = [one.name for one in kind if one is not best and one.gain > best.gain - _CLOSE]
    remedy = best.remedy
    if close and best.gain > 0:
        remedy += f" (nearly as good: {', '.join(close[:_MOST_NAMED])})"
    return replace(best, remedy=remedy, luck=best.luck * min(len(kind), 2))
