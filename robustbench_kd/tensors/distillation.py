"""The contract of a distillation method: a batch goes in, the named terms of its loss come out.

A batch context is one batch with all networks that take part. A method says what its attack should
raise (`inner`), and what the student should lower once the attack is done (`loss`); it holds no
optimiser, makes no step and runs no attack. What it learns or remembers besides the student (a
regressor, a memory bank, a peer) is one module, made by `prepare`: its parameters are optimised
with the student's, and its state dict is all that a resumed training needs.

    context = BatchContext(student=Asked(network), teachers=teachers, images=images, ...)
    objective = method.inner(context)
    if objective is not None:
        context = replace(context, adversarial=ascend(objective))
    total(method.loss(context)).backward()
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from robustbench_kd.core.errors import ModelError, UsageError, unknown_name
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.losses import cross_entropy, kl_divergence
from robustbench_kd.tensors.oracle import freeze, mode

Helper = TypeVar("Helper", bound=nn.Module)
Objective = Callable[[Images, Logits], Tensor]
"""Maps points `(n, c, h, w)` and the student's logits there to the value to raise, `(n,)`."""

Terms = dict[str, Tensor]
"""The weighted terms of a loss by name, each a scalar; the loss is their sum."""

PENULTIMATE = ""
"""The layer that stands for what the last linear layer takes in."""


class MethodOptions(BaseModel):
    """What a recipe may choose of a method: checked when it is made, never changed.

    A field it does not know is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def teachers(self) -> tuple[str, ...]:
        """Returns what each teacher is, in the order in which they are given."""
        return ("teacher",)


class Progress(NamedTuple):
    """How far a training is; the first epoch is 1."""

    epoch: int
    epochs: int


class _Answer(NamedTuple):
    images: Images
    layer: str | None
    logits: Logits
    features: Tensor


class CachedNetwork:
    """A network that is asked once about a tensor, however many parts of a method want its answer.

    Each pass of a student updates its batch statistics, and each pass of a teacher costs more than
    one of the student. Answers are kept for as long as this object lives: make one for each batch.
    With `half` precision the network works in bfloat16 where torch holds that to be safe; its
    answers are as exact as the images all the same.
    """

    def __init__(self, network: nn.Module, *, half: bool = False) -> None:
        self.network, self._half = network, half
        self._answers: list[_Answer] = []

    def __call__(self, images: Images) -> Logits:
        """Returns the logits `(n, classes)` of images `(n, c, h, w)`."""
        return self._answer(images, None).logits

    def features(self, images: Images, layer: str) -> Tensor:
        """Returns the output of a layer for images.

        If it is asked before the logits, one pass gives both.
        """
        return self._answer(images, layer).features

    def through(self, images: Images) -> Logits:
        """Returns logits that are differentiable where the images are; nothing is remembered."""
        return self._pass(images, None)[0]

    def _answer(self, images: Images, layer: str | None) -> _Answer:
        for known in self._answers:
            if known.images is images and layer in {None, known.layer}:
                return known
        self._answers.append(_Answer(images, layer, *self._pass(images, layer)))
        return self._answers[-1]

    def _pass(self, images: Images, layer: str | None) -> tuple[Logits, Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._half):
            logits, features = _pass(self.network, images, layer)
        return logits.to(images.dtype), features.to(images.dtype)


class Teacher(Protocol):
    """A network that does not learn."""

    def __call__(self, images: Images) -> Logits:
        """Returns logits without a gradient."""
        ...

    def features(self, images: Images, layer: str) -> Tensor:
        """Returns what a layer gives, without a gradient."""
        ...

    def through(self, images: Images) -> Logits:
        """Returns logits that are differentiable where the images are."""
        ...


class FrozenTeacher(CachedNetwork):
    """A teacher in evaluation mode with constant parameters, both from when this is made."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        freeze(network)

    def _answer(self, images: Images, layer: str | None) -> _Answer:
        with torch.no_grad():
            return super()._answer(images, layer)


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What a method may look at before the first batch.

    Args:
        student: The network that is to learn.
        teachers: The frozen networks it learns from; none where their logits were stored.
        images: A few training images `(n, c, h, w)`, for the shapes of features.
        labels: The labels of all training examples, `(rows,)`.
        fresh: Builds another network like the student, with weights of its own.
    """

    student: nn.Module
    teachers: tuple[nn.Module, ...]
    images: Images
    labels: Labels
    fresh: Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchContext:
    """One batch, and everybody who takes part in it.

    Args:
        student: The network that learns, in training mode while the loss is computed.
        teachers: Those it learns from, as the method's options name them.
        images: Clean images `(n, c, h, w)`, as augmented.
        labels: Their labels `(n,)`.
        rows: Where they stand among the training examples, `(n,)` int64.
        progress: How far the training is.
        generator: The source of whatever the method draws.
        helper: What `prepare` made, or an empty module.
        adversarial: What the attack made of the images, detached; None before the attack or without
            one.
    """

    student: CachedNetwork
    teachers: tuple[Teacher, ...]
    images: Images
    labels: Labels
    rows: Tensor
    progress: Progress
    generator: torch.Generator
    helper: nn.Module = field(default_factory=nn.Module)
    adversarial: Images | None = None

    @property
    def teacher(self) -> Teacher:
        """The first teacher; raises `UsageError` where there is none."""
        if not self.teachers:
            raise UsageError("expected a teacher, got none: choose a method that has one")
        return self.teachers[0]

    @property
    def attacked(self) -> Images:
        """The adversarial images; raises `UsageError` where the method makes none."""
        if self.adversarial is None:
            raise UsageError(
                "expected adversarial images, got none: choose a method that trains on them, such "
                "as rslad"
            )
        return self.adversarial

    def prepared(self, kind: type[Helper]) -> Helper:
        """Returns the helper, which has to be of a kind.

        Raises `UsageError` where `prepare` did not make it.
        """
        if not isinstance(self.helper, kind):
            raise UsageError(
                f"expected the {kind.__name__} that 'prepare' makes, got a "
                f"{type(self.helper).__name__}"
            )
        return self.helper


@dataclass(frozen=True)
class Method:
    """A method with its options and those of its additions bound: what a training loop is given."""

    name: str
    options: MethodOptions
    inner: Callable[[BatchContext], Objective | None]
    loss: Callable[[BatchContext], Terms]
    prepare: Callable[[Setup], nn.Module]
    additions: Mapping[str, MethodOptions] = field(default_factory=dict)


def labelled(labels: Labels, points: Images, logits: Logits) -> Tensor:
    """Returns CE(S(x'), y) of each example, `(n,)`."""
    return cross_entropy(logits, labels)


def away_from(target: Logits, points: Images, logits: Logits) -> Tensor:
    """Returns KL(target || S(x')) of each example, `(n,)`, for a target that stays where it is."""
    return kl_divergence(target, logits)


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Returns the loss, the sum of its terms.

    >>> total({"teacher": torch.tensor(2.0), "labels": torch.tensor(0.5)})
    tensor(2.5000)
    """
    return torch.stack(list(terms.values())).sum()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode, without gradients of parameters.

    Afterwards every module has its mode again.
    """
    with mode(network, training=False), torch.no_grad():
        yield


def feature_shape(network: nn.Module, images: Images, layer: str) -> torch.Size:
    """Returns the shape of a layer's features of one image, without a trace on the network."""
    with evaluating(network):
        return _pass(network, images, layer)[1].shape[1:]


def _pass(network: nn.Module, images: Images, layer: str | None) -> tuple[Logits, Tensor]:
    """Returns logits and a layer's features, which are the logits themselves for None."""
    if layer is None:
        logits: Logits = network(images)
        return logits, logits
    seen: list[Tensor] = []
    if layer == PENULTIMATE:
        hook = _last_linear(network).register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0])
        )
    else:
        hook = _named(network, layer).register_forward_hook(
            lambda _, __, output: seen.append(output)
        )
    try:
        logits = network(images)
    finally:
        hook.remove()
    if not seen:
        raise ModelError(
            f"layer '{layer or 'penultimate'}' takes no part in the network's answer: name another "
            "layer"
        )
    return logits, seen[-1]


def _last_linear(network: nn.Module) -> nn.Module:
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError(
            "expected a network that ends in a linear layer, got none: name the layer of the "
            "features"
        )
    return linear[-1]


def _named(network: nn.Module, layer: str) -> nn.Module:
    """Returns the module of a path such as `layer2`, whatever the network is wrapped in."""
    paths: dict[str, nn.Module] = dict(network.named_modules())
    found = [path for path in paths if path == layer or path.endswith(f".{layer}")]
    if not found:
        raise unknown_name("layer", layer, filter(None, paths))
    return paths[min(found, key=len)]
