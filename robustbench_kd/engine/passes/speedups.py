"""Speedups of the search: folding, layout, precision and compilation.

They change a copy of the model, which attacks ask in its place. A speedup can make an attack
weaker, but it cannot make a verdict wrong: the unmodified model judges success in fp32 with TF32
off. A speedup that does not suit a model is left out, and a note says why.

bf16 needs no scaled loss: it has the exponents of fp32, so it does not underflow as fp16 does. But
8 bits are too few for logits, because an attack compares losses with smaller differences: the
layers that give logits compute in fp32.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from robustbench_kd.core.errors import unknown_name
from robustbench_kd.engine.passes.batchnorm_folding import fold, replace_part
from robustbench_kd.engine.passes.input_convolution import rearrange
from robustbench_kd.tensors.contracts import Classifier, Images, Logits
from robustbench_kd.tensors.oracle import freeze, is_out_of_memory, tf32

Precision: TypeAlias = Literal["fp32", "tf32", "bf16"]
Wrapper: TypeAlias = Callable[[Classifier], Classifier]

_CLOSE = 1e-3  # of the largest logit: what rearranged fp32 arithmetic may change
# Part of the largest logit; a larger change by rounding says nothing about the model any more.
_ROUGH = 0.5


@dataclass(frozen=True)
class Speedups:
    """What a search may do to be faster.

    Args:
        precision: `tf32` lets GPUs round what they multiply to 10 bits of mantissa, `bf16` to 7
            bits under autocast.
        fold: Batch normalisation becomes part of the convolution or linear layer before it. On a
            CPU, in fp32 and with no other speedup, convolutions of few channels also get a faster
            gradient.
        channels_last: Weights and images lie in memory with the channels innermost.
        compile: The model is compiled for batches of one size; on a GPU into CUDA graphs.

    Raises:
        UsageError: If there is no such precision.

    >>> Speedups(precision="bf16", fold=True).label
    'bf16+fold'
    """

    precision: Precision = "fp32"
    fold: bool = False
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise unknown_name("precision", self.precision, get_args(Precision))

    @property
    def label(self) -> str:
        """Returns the speedups in one word, for records."""
        chosen = {"fold": self.fold, "channels-last": self.channels_last, "compile": self.compile}
        return "+".join([self.precision, *(name for name in chosen if chosen[name])])


class SearchModel:
    """What a search asks in place of a model.

    `notes` say which speedups were left out, some only after the first call.
    """

    def __init__(self, ask: Classifier, notes: list[str]) -> None:
        self.notes = notes
        self._ask = ask

    def __call__(self, images: Images) -> Logits:
        """Returns logits `(n, classes)` in float32, differentiable where the images are."""
        return self._ask(images)


def search_model(
    model: nn.Module, device: torch.device, speedups: Speedups, *, size: int, probe: Images
) -> SearchModel:
    """Returns what the search asks in place of a frozen model on the device.

    The model itself is never modified.

    Args:
        model: The true model, deterministic.
        device: Where the model is.
        speedups: What to try. TF32 is no property of a model: see `reduced_precision`.
        size: Rows of a compiled batch. Half a batch or more is filled up, a larger one is divided.
        probe: A few images `(n, c, h, w)`. A speedup is left out if the model fails on them or
            gives other logits.
    """
    draft, notes = _Draft(model), []
    if speedups.precision == "tf32" and device.type != "cuda":
        notes.append("tf32 needs a CUDA device: the search runs in fp32")
    probe = probe.to(device)
    for name, change, tolerance in _changes(speedups, device, probe):
        draft, note = _tried(draft, name, change, probe, tolerance)
        notes += [note] if note else []
    if not speedups.compile:
        return SearchModel(draft.ask, notes)
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    tolerance = _ROUGH if speedups.precision == "bf16" else _CLOSE
    return SearchModel(_Compiled(draft, size, mode, tolerance, notes), notes)


@contextmanager
def reduced_precision(speedups: Speedups, device: torch.device) -> Iterator[None]:
    """Allows TF32 where the speedups ask for it and the device has it.

    The passes of a search belong inside. A forward pass alone is not enough: a backward pass reads
    the switch when it runs.
    """
    if speedups.precision != "tf32" or device.type != "cuda":
        yield
        return
    with tf32(allowed=True):
        yield


@dataclass(frozen=True)
class _Draft:
    """A module, and what is wrapped around it from the inside out."""

    module: nn.Module
    wrappers: tuple[Wrapper, ...] = ()

    def ask(self, images: Images) -> Logits:
        return self.around(self.module)(images)

    def around(self, core: Classifier) -> Classifier:
        """Returns another form of the module, wrapped in the same way."""
        return reduce(lambda inner, wrap: wrap(inner), self.wrappers, core)


Change: TypeAlias = Callable[[_Draft], _Draft]


def _changes(
    speedups: Speedups, device: torch.device, probe: Images
) -> list[tuple[str, Change, float]]:
    """Returns the wanted changes in order: name, change, and by how much it may move the logits."""
    changes: list[tuple[str, Change, float]] = []
    if speedups.fold:
        changes.append(("fold", _folded, _CLOSE))
    if speedups == Speedups(fold=True) and device.type == "cpu":
        changes.append(("input-convolution", _rearranged, _CLOSE))
    if speedups.channels_last:
        changes.append(("channels-last", _laid_out, _CLOSE))
    if speedups.precision == "bf16":
        rounded = partial(_rounded, kind=device.type, probe=probe)
        changes.append(("bf16", rounded, _ROUGH))
    return changes


def _tried(
    draft: _Draft, name: str, change: Change, probe: Images, tolerance: float
) -> tuple[_Draft, str]:
    """Returns the changed draft, or the same one and why nothing could be changed."""
    try:
        changed = change(draft)
        _require_agreement(changed.ask, draft.ask, probe.detach().requires_grad_(), tolerance)
    except Exception as error:  # noqa: BLE001  # foreign code can raise anything
        return draft, _left_out(name, error)
    return changed, ""


def _left_out(name: str, error: Exception) -> str:
    """Returns the note for a speedup that failed; raises the error again where memory ran out."""
    if is_out_of_memory(error):
        raise error
    reason = str(error).partition("\n")[0] or type(error).__name__
    return f"{name} was left out of the search: {reason}"


def _require_agreement(ask: Classifier, true: Classifier, images: Images, tolerance: float) -> None:
    """Raises what a forward or backward pass raises, and `ValueError` for wrong logits."""
    expected, found = true(images.detach()).detach(), ask(images)
    if found.requires_grad:
        torch.autograd.grad(found.sum(), images, retain_graph=True)
    difference, scale = (found.detach() - expected).abs().max(), expected.abs().max().clamp(min=1)
    if not difference <= tolerance * scale:
        raise ValueError(f"logits of up to {scale:.3g} changed by {difference:.2g}")


def _folded(draft: _Draft) -> _Draft:
    """Returns the draft with batch normalisation folded into the layers before it, in a copy."""
    module = _copied(draft.module)
    fold(module)
    return replace(draft, module=module)


def _rearranged(draft: _Draft) -> _Draft:
    """Returns the draft with faster gradients of convolutions of few channels, in a copy."""
    module = _copied(draft.module)
    rearrange(module)
    return replace(draft, module=module)


def _copied(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module)
    freeze(copied)
    return copied


def _laid_out(draft: _Draft) -> _Draft:
    """Returns the draft with channels innermost, in a copy.

    Gradients come back in the usual layout.
    """
    module = _copied(draft.module).to(memory_format=torch.channels_last)
    return replace(draft, module=module, wrappers=(*draft.wrappers, _channels_last))


def _channels_last(inner: Classifier) -> Classifier:
    def ask(images: Images) -> Logits:
        laid = images.view_as(images).contiguous(memory_format=torch.channels_last)
        if laid.requires_grad:
            laid.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
        return inner(laid)

    return ask


def _rounded(draft: _Draft, kind: str, probe: Images) -> _Draft:
    """Returns a copy under autocast to bf16; the layers that give logits compute in fp32."""
    with torch.no_grad():
        classes = draft.ask(probe).shape[1]
    module = _copied(draft.module)
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Linear) and part.out_features == classes:
            replace_part(module, name, _Full(part, kind))
    return replace(draft, module=module, wrappers=(*draft.wrappers, partial(_autocast, kind=kind)))


def _autocast(inner: Classifier, kind: str) -> Classifier:
    def ask(images: Images) -> Logits:
        with torch.autocast(kind, torch.bfloat16):
            logits = inner(images)
        return logits.float()

    return ask


class _Full(nn.Module):
    """A layer that computes in fp32 within an autocast."""

    def __init__(self, layer: nn.Module, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = layer, kind

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(self.kind, enabled=False):
            output: Tensor = self.layer(features.float())
        return output


class _Compiled:
    """Asks the compiled module in batches of one size, so that one graph serves all.

    Where that fails, it asks the plain module. A batch that would be less than half full is asked
    as it is. There are two graphs, with and
    without gradient; each is compiled at the first call that needs it, and compared there.
    """

    def __init__(
        self, draft: _Draft, size: int, mode: str, tolerance: float, notes: list[str]
    ) -> None:
        self._draft = draft
        self._size = size
        self._mode = mode
        self._tolerance = tolerance
        self._notes = notes
        self._asks: dict[bool, Classifier] = {}

    def __call__(self, images: Images) -> Logits:
        return torch.cat([self._piece(piece) for piece in torch.split(images, self._size)])

    def _piece(self, images: Images) -> Logits:
        if 2 * len(images) < self._size:
            return self._draft.ask(images)
        with_gradient = torch.is_grad_enabled() and images.requires_grad
        if with_gradient not in self._asks:
            self._asks[with_gradient] = self._best(images.detach().requires_grad_(with_gradient))
        return self._asks[with_gradient](images)

    def _best(self, images: Images) -> Classifier:
        """Returns the compiled form if it works on these images, else the plain one."""
        try:
            # The advice of a compiler does not help a person who evaluates.
            with warnings.catch_warnings(action="ignore"):
                return self._compiled(images)
        except Exception as error:  # noqa: BLE001  # compilers can raise anything
            self._notes.append(_left_out("compile", error))
            return self._draft.ask

    def _compiled(self, images: Images) -> Classifier:
        fast = self._draft.around(torch.compile(self._draft.module, dynamic=False, mode=self._mode))
        ask = partial(_filled, fast, self._size)
        _require_agreement(ask, self._draft.ask, images, self._tolerance)
        return ask


def _filled(ask: Classifier, size: int, images: Images) -> Logits:
    """Returns the logits of at most `size` images; the last one is repeated to fill the batch.

    CUDA graphs write to the same memory at every call, so logits and gradients are copied.
    """
    own = images.view_as(images)
    if own.requires_grad:
        own.register_hook(torch.Tensor.clone)  # type: ignore[no-untyped-call]
    full = own.contiguous()
    if len(own) < size:
        filling = own[-1:].expand(size - len(own), -1, -1, -1)
        full = torch.cat([own, filling])
    return ask(full)[: len(own)].clone()
