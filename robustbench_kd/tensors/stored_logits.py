"""A teacher's logits, computed once.

They are float16, keyed by example and view; the file names teacher and data. Random augmentation
would part images from stored answers, so training sees a fixed number of views of every image, each
a function of the example and the view alone. The file is refused where teacher, data set or views
are others.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.core.errors import CheckpointError, ModelError, UsageError
from robustbench_kd.tensors import hashed_file, keyed_random
from robustbench_kd.tensors.contracts import Classifier, Dataset, Images, Logits

_SCHEMA = "1"
_STREAM = "stored-view"


@dataclass(frozen=True)
class Views:
    """Fixed views of every image.

    View 0 is the image itself, view 1 its mirror image where views are mirrored. Every further one
    is shifted by up to `padding` pixels, black flowing in, and mirrored where its number is odd.
    Two views without padding are the two sides of flipping alone.
    """

    count: int = 1
    mirror: bool = True
    padding: int = 0
    seed: int = 0

    def of(self, images: Images, ids: Tensor, views: Tensor) -> Images:
        """Returns the views `(n,)` of images `(n, c, h, w)` of the examples `ids` `(n,)`."""
        n, _, height, width = images.shape
        span = 2 * self.padding + 1
        drawn = keyed_random.uniform(self.seed, _STREAM, ids, torch.zeros_like(ids), views, 2)
        corners = torch.where((views > self.mirror)[:, None], (drawn * span).long(), self.padding)
        rows = corners[:, :1] + torch.arange(height, device=images.device)
        columns = corners[:, 1:] + torch.arange(width, device=images.device)
        padded = functional.pad(images, [self.padding] * 4).movedim(1, -1)
        example = torch.arange(n, device=images.device)[:, None, None]
        shifted = padded[example, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
        mirrored = (views % 2 == 1) & self.mirror
        return torch.where(mirrored[:, None, None, None], shifted.flip(-1), shifted)


@dataclass(frozen=True)
class Source:
    """What stored logits answer for.

    The sha256 of the teacher's weights, the data set's fingerprint, and the views.
    """

    teacher: str
    dataset: str
    views: Views


@dataclass(frozen=True, eq=False)
class StoredLogits:
    """Logits `(examples, views, classes)` float16 of the examples `ids` `(examples,)`, sorted."""

    ids: Tensor
    logits: Tensor

    def of(self, ids: Tensor, views: Tensor) -> Logits:
        """Returns float32 logits `(n, classes)`.

        Raises `UsageError` for an example or view that was not stored.
        """
        keys = ids.to(self.ids.device)
        place = torch.searchsorted(self.ids, keys).clamp(max=len(self.ids) - 1)
        if bool((self.ids[place] != keys).any()) or int(views.max()) >= self.logits.shape[1]:
            raise UsageError(
                "expected examples and views whose logits were stored, got others: store them anew"
            )
        return self.logits[place, views.to(place.device)].float().to(ids.device)


class StoredTeacher:
    """A teacher that answers from stored logits, for the one batch they belong to."""

    def __init__(self, images: Images, logits: Logits) -> None:
        self._images, self._logits = images, logits

    def __call__(self, images: Images) -> Logits:
        """Returns the stored logits.

        Raises `UsageError` for any other images, adversarial ones included.
        """
        if images is not self._images:
            raise self._unknown("images other than the stored views")
        return self._logits

    def features(self, images: Images, layer: str) -> Tensor:
        """Raises `UsageError`: only logits were stored."""
        raise self._unknown("features")

    def through(self, images: Images) -> Logits:
        """Raises `UsageError`: stored logits have no gradient."""
        raise self._unknown("gradients")

    @staticmethod
    def _unknown(wanted: str) -> UsageError:
        return UsageError(f"stored logits cannot give {wanted}: name the teacher itself")


@dataclass(frozen=True, eq=False)
class Archive:
    """What teachers said of fixed views of a data set, in the order of the teachers."""

    views: Views
    stored: tuple[StoredLogits, ...]

    def shown(
        self, images: Images, ids: Tensor, generator: torch.Generator
    ) -> tuple[Images, tuple[StoredTeacher, ...]]:
        """Returns one view of each image, drawn uniformly, and the teachers with their answers."""
        drawn = torch.randint(self.views.count, ids.shape, generator=generator).to(ids.device)
        seen = self.views.of(images, ids, drawn)
        return seen, tuple(StoredTeacher(seen, answers.of(ids, drawn)) for answers in self.stored)


def ask(
    teacher: Classifier, dataset: Dataset, views: Views, *, batch_size: int, device: torch.device
) -> StoredLogits:
    """Returns the teacher's answers to every view of every example.

    Raises `ModelError` beyond what float16 holds.
    """
    order = torch.tensor(dataset.ids).argsort()
    known = dataset.take(order)
    answers = torch.cat(list(_answers(teacher, known, views, batch_size=batch_size, device=device)))
    if not bool(answers.isfinite().all()):
        raise ModelError(
            "the teacher's logits do not fit into float16: they are beyond 65,504 in size, or no "
            "numbers"
        )
    return StoredLogits(torch.tensor(known.ids), answers)


def write(path: Path, stored: StoredLogits, source: Source) -> None:
    """Writes logits and what they answer for, whole or not at all.

    Raises `RecordError` where that fails.
    """
    hashed_file.write(path, {"ids": stored.ids, "logits": stored.logits}, _header(source))


def read(path: Path, source: Source) -> StoredLogits:
    """Reads logits.

    Raises `CheckpointError` where the file is damaged or answers for something else.
    """
    content, header = hashed_file.read(path)
    for key, expected in _header(source).items():
        if header.get(key) != expected:
            raise CheckpointError(
                f"'{path}': expected stored logits of {key} {expected}, got "
                f"{header.get(key, 'none')}: delete it"
            )
    return StoredLogits(content["ids"], content["logits"])


@torch.no_grad()
def _answers(
    teacher: Classifier, dataset: Dataset, views: Views, *, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    for rows in torch.split(torch.arange(len(dataset)), batch_size):
        part = dataset.take(rows)
        images, ids = part.images.to(device), torch.tensor(part.ids, device=device)
        seen = [views.of(images, ids, torch.full_like(ids, view)) for view in range(views.count)]
        yield torch.stack([teacher(view) for view in seen], dim=1).half().cpu()


def _header(source: Source) -> dict[str, str]:
    views = json.dumps(asdict(source.views), sort_keys=True)
    return {"schema": _SCHEMA, "teacher": source.teacher, "dataset": source.dataset, "views": views}
