"""A key-value cache over late layers (Orhan 2018).

Source: "A Simple Cache Model for Image Recognition", NeurIPS 2018, arXiv 1805.08709. Here the
mixture of probabilities is computed from logarithms throughout: at the published temperatures the
cache is nearly one-hot, and its gradient would vanish in float32.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from robustbench_kd.core.errors import ModelError, UsageError, unknown_name
from robustbench_kd.defences._arguments import only_part, require_flag, require_whole
from robustbench_kd.defences._batches import batches, spread
from robustbench_kd.defences._defence import Defence
from robustbench_kd.defences._surfaces import backbone
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.defence import Surface

_THETAS = tuple(range(10, 91, 10))
_LAMBDAS = tuple(tenths / 10 for tenths in range(1, 10))
_SMOOTH = 10.0
_ABSENT = -1e4  # log-probability of a class without items: finite, and far below all others


@dataclass(frozen=True)
class Tap:
    """A module of the part, by name, whose output or input is a feature."""

    name: str
    before: bool = False


class Cache(Defence):
    """`(1 - lambda) softmax(part) + lambda cache`, as log-probabilities.

    The cache gives class y the share of its items in `sum_k exp(theta q.k)`, where q and k are the
    features of the image and of a stored one, as unit vectors. The `keys` `(items, d)` and `values`
    `(items,)` are sorted by class; both are empty until `fit`, and take their sizes from what is
    loaded.
    """

    keys: Tensor
    values: Tensor
    theta: Tensor
    lambda_: Tensor

    def __init__(
        self, part: nn.Module, *, classes: int, taps: Sequence[Tap], items: int, flips: bool
    ) -> None:
        super().__init__([part])
        self.classes, self.items, self.flips = classes, items, flips
        self.taps = tuple(taps)
        self.register_buffer("keys", torch.zeros(0, 0))
        self.register_buffer("values", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("theta", torch.tensor(_SMOOTH))
        self.register_buffer("lambda_", torch.tensor(0.5))

    def forward(self, images: Images) -> Logits:
        """Maps images `(n, c, h, w)` in [0, 1] to log-probabilities `(n, classes)`."""
        return self._answer(images, self.theta)

    @torch.no_grad()
    def fit(
        self, images: Images, labels: Labels, held_out: Images, held_out_labels: Labels
    ) -> None:
        """Stores evenly spaced training images, then chooses theta and lambda by held-out accuracy.

        Theta is one of 10, 20, ..., 90, lambda one of 0.1, ..., 0.9. Of equally accurate pairs the
        one that trusts the cache most is taken, and then the smoothest: the largest lambda, then
        the smallest theta.
        """
        views = (torch.clone, _mirrored) if self.flips else (torch.clone,)
        rows = spread(len(images), self.items // len(views) if self.items else len(images))
        device = self.theta.device
        seen = (view(some) for view in views for (some,) in batches(device, images[rows]))
        keys = torch.cat([self._look(some)[1] for some in seen])
        values = labels[rows].repeat(len(views)).to(device)
        order = values.argsort(stable=True)
        self.keys, self.values = keys[order], values[order]
        theta, lambda_ = self._best(held_out, held_out_labels)
        self.theta.fill_(theta)
        self.lambda_.fill_(lambda_)

    def surfaces(self) -> Sequence[Surface]:
        """Returns the part, the cache without it, and both with a theta of 10, where the cache is smooth."""
        alone = Surface(name="cache-only", answer=lambda images, _key: self._cached(images))
        smooth = Surface(
            name="temperature",
            answer=lambda images, _key: self._answer(images, self.theta.new_tensor(_SMOOTH)),
        )
        return [backbone(self.part), alone, smooth]

    def _answer(self, images: Images, theta: Tensor) -> Logits:
        logits, queries = self._look(images)
        return _mixed(logits, self._memory(self._similarities(queries), theta), self.lambda_)

    def _cached(self, images: Images) -> Logits:
        _, queries = self._look(images)
        return self._memory(self._similarities(queries), self.theta)

    def _look(self, images: Images) -> tuple[Logits, Tensor]:
        """Returns the logits of the part, and the features of the images as unit vectors `(n, d)`."""
        with _listening(self.part, self.taps) as heard:
            logits = self.part(images)
        missing = [tap.name for tap in self.taps if tap not in heard]
        if missing:
            raise ModelError(
                f"layer '{missing[0]}' took no part in the answer: choose other layers for the cache"
            )
        features = torch.cat([heard[tap].flatten(1) for tap in self.taps], dim=1)
        return logits, functional.normalize(features, dim=1)

    def _similarities(self, queries: Tensor) -> Tensor:
        if not len(self.keys):
            raise ModelError("the cache is empty: fit it, or load its weights")
        return queries @ self.keys.T

    def _memory(self, similarities: Tensor, theta: Tensor) -> Tensor:
        """Returns the log-probabilities that the cache alone gives, `(n, classes)`, from `(n, items)`."""
        scores = theta * similarities
        counts = torch.bincount(self.values, minlength=self.classes).tolist()
        of_class = torch.stack(
            [own.logsumexp(dim=1) for own in torch.split(scores, counts, dim=1)], dim=1
        )
        return (of_class - scores.logsumexp(dim=1, keepdim=True)).clamp(min=_ABSENT)

    def _best(self, images: Images, labels: Labels) -> tuple[float, float]:
        hits = torch.zeros(len(_LAMBDAS), len(_THETAS), device=self.theta.device)
        lambdas = self.theta.new_tensor(_LAMBDAS)[:, None, None]
        for some, answers in batches(self.theta.device, images, labels):
            logits, queries = self._look(some)
            similarities = self._similarities(queries)
            for column, theta in enumerate(self.theta.new_tensor(_THETAS)):
                predictions = _mixed(logits, self._memory(similarities, theta), lambdas).argmax(
                    dim=2
                )
                hits[:, column] += (predictions == answers).sum(dim=1)
        row, column = max(
            torch.argwhere(hits == hits.max()).tolist(), key=lambda place: (place[0], -place[1])
        )
        return _THETAS[column], _LAMBDAS[row]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Makes room for as many items as the file holds; torch would refuse another size."""
        for name in ("keys", "values"):
            own, stored = getattr(self, name), state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, own.new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        problems: list[str] = rest[-1]
        if not self._is_in_order():
            sizes = f"keys {tuple(self.keys.shape)} and values {tuple(self.values.shape)}"
            problems.append(
                f"expected {self.classes} classes of items, sorted, one value for each key, got {sizes}"
            )

    def _is_in_order(self) -> bool:
        if self.keys.ndim != 2 or self.values.shape != self.keys.shape[:1]:
            return False
        known = (self.values >= 0) & (self.values < self.classes)
        return bool(known.all()) and bool((self.values.diff() >= 0).all())


def assemble(
    parts: Sequence[nn.Module],
    *,
    classes: int,
    layers: Sequence[str] = (),
    items: int = 0,
    flips: bool = False,
) -> nn.Module:
    """Returns one part that remembers training images.

    Args:
        parts: The classifier.
        classes: Number of logits.
        layers: Modules of the part whose outputs, flattened and joined, are the features; the input
            of the last linear layer if empty, or the logits where there is none. A normalisation in
            front of a network does not change its names.
        items: How many are stored at most, mirror images included; 0 stores all.
        flips: Whether each image is stored with its mirror image.

    Raises:
        UsageError: If an argument is impossible.
    """
    part = only_part(parts, "cache")
    require_whole("items", items, 0)
    require_flag("flips", flips)
    if flips and items == 1:
        raise UsageError(
            "expected room for an image and its mirror image, got items = 1 with flips"
        )
    taps = [_named(part, name) for name in layers] or [_last(part)]
    return Cache(part, classes=classes, taps=taps, items=items, flips=flips)


def _named(part: nn.Module, name: str) -> Tap:
    known = dict(part.named_modules())
    for candidate in (name, f"network.{name}"):
        if name and candidate in known:
            return Tap(candidate)
    raise unknown_name("layer", str(name), [found for found in known if found])


def _last(part: nn.Module) -> Tap:
    linear = [name for name, module in part.named_modules() if isinstance(module, nn.Linear)]
    return Tap(linear[-1], before=True) if linear else Tap("")


@contextmanager
def _listening(part: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[Tap, Tensor]]:
    """Yields what the tapped modules last heard or said, filled while the part runs."""
    heard: dict[Tap, Tensor] = {}
    with ExitStack() as stack:
        for tap in taps:
            module = part.get_submodule(tap.name)
            stack.enter_context(
                _before(module, tap, heard) if tap.before else _after(module, tap, heard)
            )
        yield heard


def _before(module: nn.Module, tap: Tap, heard: dict[Tap, Tensor]) -> RemovableHandle:
    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        heard[tap] = inputs[0]

    return module.register_forward_pre_hook(note)


def _after(module: nn.Module, tap: Tap, heard: dict[Tap, Tensor]) -> RemovableHandle:
    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        heard[tap] = output

    return module.register_forward_hook(note)


def _mixed(logits: Logits, memory: Tensor, lambda_: Tensor) -> Logits:
    """Returns the log-probabilities of the mixture; all of it stays in logarithms."""
    return torch.logaddexp(
        torch.log1p(-lambda_) + logits.log_softmax(dim=1), lambda_.log() + memory
    )


def _mirrored(images: Images) -> Images:
    return images.flip(3)
