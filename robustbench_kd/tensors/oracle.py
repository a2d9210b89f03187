"""Asks a defence as a whole: freezes it, counts its passes, checks what comes out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_kd.core.errors import ModelError, RkdError, reason
from robustbench_kd.tensors.causes import advice
from robustbench_kd.tensors.contracts import Classifier, Images, Labels, Logits
from robustbench_kd.tensors.defence import Batched, Key, Mixture, Randomized, is_randomized
from robustbench_kd.tensors.malloc import keep_freed_memory
from robustbench_kd.tensors.meter import Meter
from robustbench_kd.tensors.undefined import is_undefined, settled, unmasked

# On a CPU a smaller batch uses other kernels, which round in another way: networks of `models/`
# need at least 16 rows.
_LEAST_ROWS = 16
_ROWS_PER_CALL = 512  # rows up to which several draws of few images are asked as one batch


def freeze(model: nn.Module) -> bool:
    """Freezes a model in evaluation mode; returns whether any part was in training mode.

    Constant parameters spare the weight gradients of every backward pass: FAB runs 1.5 times as
    fast.
    """
    was_training = any(part.training for part in model.modules())
    model.eval()
    for parameter in model.parameters():  # scripted modules lack `requires_grad_`
        parameter.requires_grad_(False)
    return was_training


@contextmanager
def full_precision() -> Iterator[None]:
    """Switches TF32 off: convolutions on recent GPUs use it by default, and verdicts must not."""
    with tf32(allowed=False):
        yield


@contextmanager
def tf32(*, allowed: bool) -> Iterator[None]:
    """Allows or forbids TF32 on GPUs, and puts the switches of torch back afterwards.

    The older switches cannot be read where the process has set the newer ones for some kinds of
    operations: then the newer ones are used.
    """
    backends = torch.backends
    name = "allow_tf32"
    value: object = allowed
    parts: list[object] = [backends.cuda.matmul, backends.cudnn]
    try:
        before = [getattr(part, name) for part in parts]
    except RuntimeError:
        name, value = "fp32_precision", "tf32" if allowed else "ieee"
        cudnn: Any = backends.cudnn  # torch does not declare its parts
        parts = [backends.cuda.matmul, cudnn.conv, cudnn.rnn]
        before = [getattr(part, name) for part in parts]

    for part in parts:
        setattr(part, name, value)
    try:
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            setattr(part, name, old)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that a batch did not fit, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turns what a person's own code raises into a `ModelError` of one line, with advice by cause.

    Errors of our own and a lack of memory pass.
    """
    try:
        yield
    except RkdError:
        raise
    except (Exception, SystemExit) as error:  # foreign code can raise anything, and exit, too
        if is_out_of_memory(error):
            raise
        raise refused(what, error) from error


def refused(what: str, error: BaseException, unknown: str = "") -> ModelError:
    """Returns the line that says what failed, why, and what to do by its cause."""
    said = "its code ends the process" if isinstance(error, SystemExit) else reason(error)
    parts = f"{what}: {said.rstrip('.')}", advice(error) or unknown
    return ModelError("; ".join(filter(None, parts)))


@torch.no_grad()
def changes_argument(model: nn.Module, images: Images) -> bool:
    """Returns whether a model writes into the images it is given, or writes the same ones again."""
    given = images.clone()
    model(given)
    return given._version > 0 or not torch.equal(given, images)  # noqa: SLF001


@contextmanager
def mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Puts a network into training or evaluation mode and every module back afterwards."""
    before = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


class Oracle:
    """A frozen defence whose passes are counted in examples; call it like the model itself.

    A randomized defence draws under `seed`.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, meter: Meter | None = None, *, seed: int = 0
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()

        self.device = device
        self.meter = meter or Meter()
        with guarded("the model cannot be frozen and moved to the device"):
            self.was_training = freeze(model)
            self.model = model.to(device)
        self.abstains = bool(getattr(model, "abstains", False))
        self._randomized = model if is_randomized(model) else None
        self._mixture = model if isinstance(model, Mixture) else None
        self._seed = seed
        self._calls = 0

    def around(self, model: nn.Module) -> "Oracle":
        """Returns an oracle that asks a module around this model, and counts with it."""
        wrapped = Oracle(model, self.device, self.meter, seed=self._seed)
        wrapped.was_training = self.was_training
        wrapped.abstains = self.abstains
        return wrapped

    @property
    def randomized(self) -> bool:
        """Whether the defence is randomized."""
        return self._randomized is not None

    @property
    def exact(self) -> bool:
        """Whether expectations need no sampling.

        That holds for a deterministic defence and for an ensemble that shows its members.
        """
        return self._randomized is None or self._mixture is not None

    def __call__(self, images: Images) -> Logits:
        """Returns logits `(n, classes)` of images `(n, c, h, w)`, differentiable like the model.

        A randomized defence answers with a fresh draw, as it does for an attack that does not know
        its keys.
        """
        if self._randomized is None:
            return self._counted(self.model(images.clone()), len(images))

        self._calls += 1
        rows = torch.arange(len(images), device=images.device)
        key = Key(self._seed, "call", ids=rows, draw=torch.full_like(rows, self._calls))
        return self._counted(self._randomized.draw(images.clone(), key), len(images))

    def logits(self, images: Images, *, attacked: Labels | None = None) -> Logits:
        """Returns checked logits on the CPU; a randomized defence answers with a fresh draw.

        They are finite: a class that is masked by minus infinity gets a very low logit. Raises
        `ModelError` where the model refuses the images or does not give one row of numbers per
        image. Where an attack has made the images, with the labels `attacked` `(n,)`, a row that is
        no numbers is an answer for the label instead.
        """
        return _numbers(self._checked(self, images), attacked)

    def answers(
        self,
        images: Images,
        ids: Tensor,
        *,
        stream: str,
        draws: int,
        attacked: Labels | None = None,
    ) -> Tensor:
        """Returns all that the defence may answer, `(k, n, classes)` on the CPU.

        A deterministic defence gives one answer, a finite ensemble one per member, any other
        randomized defence `draws` draws under a stream, the same ones for the same `ids` `(n,)`.
        On a CPU the answers to an image are the same to the last bit, whatever other images are in
        the batch: where memory allows, the batch is filled up to a multiple of 16. Raises like
        `logits`.
        """
        n = len(images)
        key = Key(self._seed, stream, ids=ids, draw=torch.zeros_like(ids))
        filled = n + -n % _LEAST_ROWS if self.device.type == "cpu" else n
        rows = torch.arange(filled).clamp(max=n - 1)
        try:
            padded = images[rows.to(images.device)]
            padded_key = key.take(rows.to(ids.device))
            answers = self._answers(padded, padded_key, n, draws, _ROWS_PER_CALL)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            answers = self._answers(images, key, n, draws, rows_per_call=1)
        return _numbers(answers, attacked)

    def weights(self, answers: int) -> Tensor:
        """Returns the weight of each of k answers, `(k,)`; they sum to 1."""
        if self._mixture is not None:
            weights = self._mixture.weights.detach().cpu().double()
            return weights / weights.sum()
        return torch.full((answers,), 1 / answers, dtype=torch.float64)

    def _answers(self, images: Images, key: Key, n: int, draws: int, rows_per_call: int) -> Tensor:
        """Returns the answers to the first n images; one call may hold several draws of them."""
        if self._mixture is not None:
            with guarded("the members of the model cannot be had"):
                members = self._mixture.members()
            return torch.stack([self._member_answer(member, images, n) for member in members])
        if self._randomized is None:
            return self._member_answer(self.model, images, n)[None]
        if isinstance(self.model, Batched):
            return self._own_draws(self.model, images[:n], key.take(torch.arange(n)), draws)

        defence = self._randomized
        draws_per_call = max(1, rows_per_call // len(images))
        numbers = torch.split(torch.arange(draws), draws_per_call)
        return torch.cat([self._drawn(defence, images, key, n, part) for part in numbers])

    def _member_answer(self, member: nn.Module, images: Images, n: int) -> Logits:
        return self._checked(lambda points: self._counted(member(points), n), images)[:n]

    def _own_draws(self, defence: Batched, images: Images, key: Key, draws: int) -> Tensor:
        n = len(images)

        def flat(points: Images) -> Logits:
            return defence.own_draws(points, key, draws).flatten(0, 1)

        logits = self._checked(lambda points: self._counted(flat(points), n * draws), images, draws)
        return logits.view(draws, n, logits.shape[1])

    def _drawn(
        self, defence: Randomized, images: Images, key: Key, n: int, numbers: Tensor
    ) -> Tensor:
        """Returns the draws of these numbers `(k,)` of the first n images, `(k, n, classes)`."""
        rows = len(images)
        repeats = len(numbers)
        drawn = replace(
            key,
            ids=key.ids.repeat(repeats).to(self.device),
            draw=numbers.repeat_interleave(rows).to(self.device),
        )
        repeated = images.to(self.device).repeat(repeats, 1, 1, 1)
        logits = self._checked(
            lambda points: self._counted(defence.draw(points, drawn), n * repeats), repeated
        )
        return logits.view(repeats, rows, logits.shape[1])[:, :n]

    def _counted(self, logits: Logits, n: int) -> Logits:
        """Counts a pass of n images."""
        self.meter.add_call(logits, n)
        return logits

    @torch.no_grad()
    def _checked(self, ask: Classifier, images: Images, answers: int = 1) -> Logits:
        try:
            output = ask(images.to(self.device).clone())  # it may change its argument
        except (Exception, SystemExit) as error:  # foreign code can raise anything, and exit, too
            if is_out_of_memory(error):
                raise
            shape = tuple(images.shape[1:])
            what = f"the model cannot take images of shape {shape} (channels, height, width)"
            unknown = f"call it on torch.rand{tuple(images.shape)} to see where it fails"
            raise refused(what, error, unknown) from error
        return _shaped(output, answers * len(images)).float().cpu()


def check_logits(output: object, n: int) -> Logits:
    """Returns finite logits `(n, classes)`; raises `ModelError` where the output is none.

    A class that is masked by minus infinity gets a very low logit.
    """
    return _numbers(_shaped(output, n), None)


def _shaped(output: object, n: int) -> Logits:
    if not isinstance(output, Tensor):
        raise ModelError(
            f"expected the model to return a tensor of logits, got {type(output).__name__}"
        )
    if output.ndim != 2 or len(output) != n or output.shape[1] < 2:
        raise ModelError(f"expected logits of shape ({n}, classes), got {tuple(output.shape)}")
    return output


def _numbers(answers: Tensor, attacked: Labels | None) -> Tensor:
    """Returns answers `(..., n, classes)` that are finite."""
    if attacked is not None:
        return settled(answers, attacked)[0]
    if bool(answers.isfinite().all()):
        return answers

    n = answers.shape[-2]
    undefined = is_undefined(answers).view(-1, n).any(dim=0)
    if bool(undefined.any()):
        raise ModelError(
            f"the model gives NaN or infinite logits on {int(undefined.sum())} of {n} images: "
            "check the weights and the normalisation"
        )
    return unmasked(answers)
