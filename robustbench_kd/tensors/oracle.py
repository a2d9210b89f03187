"""The only place that calls a model: freezes it, counts examples, checks what comes out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustbench_kd.core.errors import ModelError
from robustbench_kd.tensors.contracts import Classifier, Images, Logits
from robustbench_kd.tensors.defence import Key, Mixture, Randomized
from robustbench_kd.tensors.malloc import keep_freed_memory

# On a CPU a row of a smaller batch takes other kernels, which round otherwise: networks of
# `models/` need at least 16.
_ROWS = 16
_TOGETHER = 512  # rows up to which several draws of few images are asked as one batch


def freeze(model: nn.Module) -> bool:
    """Puts a model in evaluation mode with constant parameters; returns whether any part was in training mode.

    Constant parameters spare the weight gradients of every backward pass: FAB runs 1.5 times as
    fast.
    """
    was_training = any(part.training for part in model.modules())
    model.eval()
    model.requires_grad_(False)
    return was_training


@contextmanager
def full_precision() -> Iterator[None]:
    """Switches TF32 off: convolutions on recent GPUs use it by default, and verdicts must not."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error says that a batch did not fit, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


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

    `on_pass` runs after every forward pass, for progress only. A randomized defence draws under
    `seed`.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        on_pass: Callable[[], None] = lambda: None,
        *,
        seed: int = 0,
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.device = device
        self.forwards = 0
        self.backwards = 0
        self.was_training = freeze(model)
        self.model = model.to(device)
        self._chance = model if isinstance(model, Randomized) else None
        self._members = model if isinstance(model, Mixture) else None
        self.abstains = bool(getattr(model, "abstains", False))
        self._on_pass = on_pass
        self._seed = seed
        self._calls = 0

    @property
    def randomized(self) -> bool:
        """Whether the defence answers by chance."""
        return self._chance is not None

    @property
    def exact(self) -> bool:
        """Whether expectations need no sampling: a deterministic defence, or an ensemble that shows its members."""
        return self._chance is None or self._members is not None

    def __call__(self, images: Images) -> Logits:
        """Returns logits `(n, classes)` of images `(n, c, h, w)`, differentiable where the images are.

        A randomized defence answers with a fresh draw: this is how an attack that knows nothing of
        keys sees it.
        """
        if self._chance is None:
            return self._counted(self.model(images), len(images))
        self._calls += 1
        return self._counted(
            self._chance.draw(images, self._key("call", images, self._calls)), len(images)
        )

    def logits(self, images: Images) -> Logits:
        """Returns checked logits on the CPU; a randomized defence answers with a fresh draw.

        Raises `ModelError` where the model refuses the images or does not give one finite row per
        image.
        """
        return self._checked(self, images)

    def answers(self, images: Images, ids: Tensor, *, stream: str, draws: int) -> Tensor:
        """Returns all that the defence may answer, `(k, n, classes)` on the CPU; raises like `logits`.

        That is one answer of a deterministic defence, one of each member of a finite ensemble, and
        otherwise `draws` draws under a stream, the same ones for the same `ids` `(n,)`. On a CPU
        they are the same to the last bit, whatever other images are asked with an image: where
        memory allows, the batch is filled up to a multiple of 16.
        """
        n, key = len(images), Key(self._seed, stream, ids=ids, draw=torch.zeros_like(ids))
        filled = n + -n % _ROWS if self.device.type == "cpu" else n
        rows = torch.arange(filled).clamp(max=n - 1)
        try:
            return self._answers(
                images[rows.to(images.device)], key.take(rows.to(ids.device)), n, draws, _TOGETHER
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return self._answers(images, key, n, draws, together=1)

    def _answers(self, images: Images, key: Key, n: int, draws: int, together: int) -> Tensor:
        """Returns the answers to the first n images; several draws are asked at once in up to `together` rows."""
        if self._chance is None or self._members is not None:
            members = [self.model] if self._members is None else self._members.members()
            return torch.stack(
                [self._checked(self._asking(member, n), images)[:n] for member in members]
            )
        some = max(1, together // len(images))
        parts = torch.split(torch.arange(draws), some)
        return torch.cat([self._drawn(self._chance, images, key, n, numbers) for numbers in parts])

    def _drawn(
        self, defence: Randomized, images: Images, key: Key, n: int, numbers: Tensor
    ) -> Tensor:
        """Returns the draws of these numbers `(k,)` of the first n images, `(k, n, classes)`."""
        rows, times = len(images), len(numbers)
        ids, draw = key.ids.repeat(times), numbers.repeat_interleave(rows)
        drawn = replace(key, ids=ids.to(self.device), draw=draw.to(self.device))
        repeated = images.to(self.device).repeat(times, 1, 1, 1)
        logits = self._checked(
            lambda some: self._counted(defence.draw(some, drawn), n * times), repeated
        )
        return logits.view(times, rows, logits.shape[1])[:, :n]

    def weights(self, answers: int) -> Tensor:
        """Returns what each of k answers counts, `(k,)`; they sum to 1."""
        if self._members is not None:
            weights = self._members.weights.detach().cpu().double()
            return weights / weights.sum()
        return torch.full((answers,), 1 / answers, dtype=torch.float64)

    def _asking(self, member: nn.Module, n: int) -> Classifier:
        return lambda images: self._counted(member(images), n)

    def _key(self, stream: str, images: Images, draw: int) -> Key:
        rows = torch.arange(len(images), device=images.device)
        return Key(self._seed, stream, ids=rows, draw=torch.full_like(rows, draw))

    def _counted(self, logits: Logits, n: int) -> Logits:
        """Counts a pass of n images."""
        self.forwards += n
        if getattr(logits, "requires_grad", False):  # a hostile model may return anything
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._on_pass()
        return logits

    @torch.no_grad()
    def _checked(self, ask: Classifier, images: Images) -> Logits:
        try:
            output = ask(images.to(self.device))
        except Exception as error:  # a model is a person's own code and can raise anything
            if is_out_of_memory(error):
                raise
            shape = tuple(images.shape[1:])
            first_line = str(error).partition("\n")[0] or type(error).__name__
            raise ModelError(
                f"the model cannot take images of shape {shape} (channels, height, width): {first_line}; "
                "choose the data set it was trained on"
            ) from error
        return check_logits(output, len(images)).float().cpu()

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def check_logits(output: object, n: int) -> Logits:
    """Returns the output if it is finite logits `(n, classes)`; raises `ModelError` otherwise."""
    if not isinstance(output, Tensor):
        raise ModelError(
            f"expected the model to return a tensor of logits, got {type(output).__name__}"
        )
    if output.ndim != 2 or len(output) != n or output.shape[1] < 2:
        raise ModelError(f"expected logits of shape ({n}, classes), got {tuple(output.shape)}")
    broken = int((~torch.isfinite(output)).any(dim=1).sum())
    if broken:
        raise ModelError(
            f"the model gives NaN or infinite logits on {broken} of {n} images: check the weights and the normalisation"
        )
    return output
