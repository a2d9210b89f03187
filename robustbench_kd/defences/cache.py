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

    The cache gives class y the fraction of its items in `sum_k exp(theta q.k)`, where q and k are
    the features of the image and of a stored one, as unit vectors. The `keys` `(items, d)` and
    `values` `(items,)` are sorted by class; both are empty until `fit`, and take the sizes of the
    weights that are loaded.
    """

    keys: Tensor
    values: Tensor
    theta: Tensor
    lambda_: Tensor

    def __init__(
        self, part: nn.Module, *, classes: int, taps: Sequence[Tap], items: int, flips: bool
    ) -> None:
        super().__init__([part])
        self.classes = classes
        self.items = items
        self.flips = flips
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

        Theta is one of 10, 20, ..., 90, lambda one of 0.1, ..., 0.9. Ties go to the largest lambda,
        which trusts the cache most, and then to the smallest theta, which is the smoothest.
        """
        views = (torch.clone, _mirrored) if self.flips else (torch.clone,)
        most = self.items // len(views) if self.items else len(images)
        rows = spread(len(images), most)
        device = self.theta.device

        keys = []
        for view in views:
            for (batch,) in batches(device, images[rows]):
                _, features = self._embedded(view(batch))
                keys.append(features)
        values = labels[rows].repeat(len(views)).to(device)
        order = values.argsort(stable=True)
        self.keys = torch.cat(keys)[order]
        self.values = values[order]

        theta, lambda_ = self._most_accurate(held_out, held_out_labels)
        self.theta.fill_(theta)
        self.lambda_.fill_(lambda_)

    def surfaces(self) -> Sequence[Surface]:
        """Returns the part, the cache without it, and both with a theta of 10, which is smooth."""
        cache_only = Surface(name="cache-only", answer=lambda images, _key: self._cached(images))
        smooth = Surface(
            name="temperature",
            answer=lambda images, _key: self._answer(images, self.theta.new_tensor(_SMOOTH)),
        )
        return [backbone(self.part), cache_only, smooth]

    def _answer(self, images: Images, theta: Tensor) -> Logits:
        logits, queries = self._embedded(images)
        cached = self._log_probabilities(self._similarities(queries), theta)
        return _mixed(logits, cached, self.lambda_)

    def _cached(self, images: Images) -> Logits:
        _, queries = self._embedded(images)
        return self._log_probabilities(self._similarities(queries), self.theta)

    def _embedded(self, images: Images) -> tuple[Logits, Tensor]:
        """Returns the logits of the part, and the features as unit vectors `(n, d)`."""
        with _recording(self.part, self.taps) as recorded:
            logits = self.part(images)
        for tap in self.taps:
            if tap not in recorded:
                raise ModelError(
                    f"layer '{tap.name}' took no part in the answer: choose other layers for the "
                    "cache"
                )
        features = torch.cat([recorded[tap].flatten(1) for tap in self.taps], dim=1)
        return logits, functional.normalize(features, dim=1)

    def _similarities(self, queries: Tensor) -> Tensor:
        if not len(self.keys):
            raise ModelError("the cache is empty: fit it, or load its weights")
        return queries @ self.keys.T

    def _log_probabilities(self, similarities: Tensor, theta: Tensor) -> Tensor:
        """Returns the log-probabilities `(n, classes)` of the cache alone, from `(n, items)`."""
        scores = theta * similarities
        counts = torch.bincount(self.values, minlength=self.classes).tolist()
        by_class = torch.split(scores, counts, dim=1)
        sums = torch.stack([items.logsumexp(dim=1) for items in by_class], dim=1)
        return (sums - scores.logsumexp(dim=1, keepdim=True)).clamp(min=_ABSENT)

    def _most_accurate(self, images: Images, labels: Labels) -> tuple[float, float]:
        """Returns the theta and the lambda of the highest accuracy."""
        hits = torch.zeros(len(_LAMBDAS), len(_THETAS), device=self.theta.device)
        lambdas = self.theta.new_tensor(_LAMBDAS)[:, None, None]
        for batch, answers in batches(self.theta.device, images, labels):
            logits, queries = self._embedded(batch)
            similarities = self._similarities(queries)
            for column, theta in enumerate(self.theta.new_tensor(_THETAS)):
                mixed = _mixed(logits, self._log_probabilities(similarities, theta), lambdas)
                hits[:, column] += (mixed.argmax(dim=2) == answers).sum(dim=1)

        best = torch.argwhere(hits == hits.max()).tolist()
        row, column = max(best, key=lambda index: (index[0], -index[1]))
        return _THETAS[column], _LAMBDAS[row]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Makes room for the items of the file; torch would refuse another size."""
        for name in ("keys", "values"):
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, getattr(self, name).new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)

        problems: list[str] = rest[-1]
        if not self._is_in_order():
            sizes = f"keys {tuple(self.keys.shape)} and values {tuple(self.values.shape)}"
            problems.append(
                f"expected {self.classes} classes of items, sorted, one value for each key, "
                f"got {sizes}"
            )

    def _is_in_order(self) -> bool:
        if self.keys.ndim != 2 or self.values.shape != self.keys.shape[:1]:
            return False
        are_classes = (self.values >= 0) & (self.values < self.classes)
        return bool(are_classes.all()) and bool((self.values.diff() >= 0).all())


def assemble(
    parts: Sequence[nn.Module],
    *,
    classes: int,
    layers: Sequence[str] = (),
    items: int = 0,
    flips: bool = False,
) -> nn.Module:
    """Returns one part with a cache of training images.

    Args:
        parts: The classifier.
        classes: Number of logits.
        layers: Modules of the part whose outputs, flattened and joined, are the features. If empty,
            the feature is the input of the last linear layer, or the logits if there is none. A
            normalisation in front of a network does not change its names.
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
    """Returns the output of a module of this name; raises `UsageError` if there is none."""
    modules = dict(part.named_modules())
    for candidate in (name, f"network.{name}"):
        if name and candidate in modules:
            return Tap(candidate)
    raise unknown_name("layer", str(name), [module for module in modules if module])


def _last(part: nn.Module) -> Tap:
    """Returns the input of the last linear layer, or the output of the part if there is none."""
    tap = Tap("")
    for name, module in part.named_modules():
        if isinstance(module, nn.Linear):
            tap = Tap(name, before=True)
    return tap


@contextmanager
def _recording(part: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[Tap, Tensor]]:
    """Yields the last input or output of each tapped module, which is set while the part runs."""
    recorded: dict[Tap, Tensor] = {}
    with ExitStack() as stack:
        for tap in taps:
            stack.enter_context(_record(part.get_submodule(tap.name), tap, recorded))
        yield recorded


def _record(module: nn.Module, tap: Tap, recorded: dict[Tap, Tensor]) -> RemovableHandle:
    def record_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        recorded[tap] = inputs[0]

    def record_output(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        recorded[tap] = output

    if tap.before:
        return module.register_forward_pre_hook(record_input)
    return module.register_forward_hook(record_output)


def _mixed(logits: Logits, cached: Tensor, lambda_: Tensor) -> Logits:
    """Returns the log-probabilities of the mixture, computed from logarithms alone."""
    of_part = torch.log1p(-lambda_) + logits.log_softmax(dim=1)
    return torch.logaddexp(of_part, lambda_.log() + cached)


def _mirrored(images: Images) -> Images:
    return images.flip(3)
