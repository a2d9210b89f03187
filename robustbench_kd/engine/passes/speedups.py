"""Speedups of the search: folding, layout, precision and compilation.

They change a copy of the model, which attacks ask in its place. The unmodified model judges success
in fp32 with TF32 off, so that no image counts as broken by mistake. But an attack on a copy that
answers otherwise finds nothing, and then a weak model looks robust. So a copy must agree with the
model on images that neither was asked about, in logits and gradients. Where it does not, the search
asks the model itself, and a note says why.

bf16 needs no scaled loss: it has the exponents of fp32, so it does not underflow as fp16 does. But
8 bits are too few for logits, because an attack compares losses with smaller differences: the
layers that give logits compute in fp32.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from robustbench_kd.core.errors import reason, unknown_name
from robustbench_kd.engine.passes.agreement import Tolerance, fresh, require_agreement, require_same
from robustbench_kd.engine.passes.batchnorm_folding import fold, replace_part
from robustbench_kd.engine.passes.input_convolution import rearrange
from robustbench_kd.tensors.contracts import Classifier, Images, Logits
from robustbench_kd.tensors.oracle import freeze, is_out_of_memory, tf32

Precision: TypeAlias = Literal["fp32", "tf32", "bf16"]
Wrapper: TypeAlias = Callable[[Classifier], Classifier]

_CLOSE = Tolerance(1e-3, 0.05)  # for rearranged fp32 arithmetic
_ROUGH = Tolerance(0.5, 0.9)  # more than this by rounding says nothing about the model any more


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
    notes = list[str]()
    if speedups.precision == "tf32" and device.type != "cuda":
        notes.append("tf32 needs a CUDA device: the search runs in fp32")
    draft = _changed(model, _changes(speedups, device, probe.to(device)), probe.to(device), notes)
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


class _Change(NamedTuple):
    """A speedup: its name, what it does, and how far it may be off."""

    name: str
    apply: Callable[[_Draft], _Draft]
    tolerance: Tolerance


def _changes(speedups: Speedups, device: torch.device, probe: Images) -> list[_Change]:
    """Returns the wanted changes in order."""
    changes = list[_Change]()
    if speedups.fold:
        changes.append(_Change("fold", _folded, _CLOSE))
    if speedups == Speedups(fold=True) and device.type == "cpu":
        changes.append(_Change("input-convolution", _rearranged, _CLOSE))
    if speedups.channels_last:
        changes.append(_Change("channels-last", _laid_out, _CLOSE))
    if speedups.precision == "bf16":
        rounded = partial(_rounded, kind=device.type, probe=probe)
        changes.append(_Change("bf16", rounded, _ROUGH))
    return changes


def _changed(
    model: nn.Module, changes: Sequence[_Change], probe: Images, notes: list[str]
) -> _Draft:
    """Returns the model with the changes that suit it, and notes why others do not.

    None suits a model of which a plain copy already answers otherwise.
    """
    draft = _Draft(model)
    if not changes:
        return draft
    try:
        require_agreement(_copied(model), model, probe, _CLOSE)
    except Exception as error:  # noqa: BLE001  # foreign code can raise anything
        notes += [_left_out(change.name, error) for change in changes]
        return draft

    for change in changes:
        try:
            changed = change.apply(draft)
            require_agreement(changed.ask, model, probe, change.tolerance)
        except Exception as error:  # noqa: BLE001  # foreign code can raise anything
            notes.append(_left_out(change.name, error))
        else:
            draft = changed
    return draft


def _left_out(name: str, error: Exception) -> str:
    """Returns the note for a speedup that failed; raises the error again where memory ran out."""
    if is_out_of_memory(error):
        raise error
    return f"{name} was left out of the search: {reason(error)}"


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
    """Returns a frozen copy that can be changed.

    Raises `ValueError` where it shares parts with the module: a class may copy itself as it likes.
    """
    copied = copy.deepcopy(module)
    if _parts(copied) & _parts(module):
        raise ValueError("a copy of the model shares parts with it")
    freeze(copied)
    return copied


def _parts(module: nn.Module) -> set[int]:
    return {id(part) for part in (*module.modules(), *module.parameters(), *module.buffers())}


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
        self, draft: _Draft, size: int, mode: str, tolerance: Tolerance, notes: list[str]
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
            points = fresh(images.detach(), torch.Generator().manual_seed(0))
            self._asks[with_gradient] = self._best(points.requires_grad_(with_gradient))
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
        require_same(ask, self._draft.ask, images, self._tolerance)
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
