"""The only place that calls a model: freezes it, counts examples, checks what comes out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustbench_kd.core.errors import ModelError
from robustbench_kd.tensors.contracts import Images, Logits


def freeze(model: nn.Module) -> bool:
    """Puts a model in evaluation mode with constant parameters; returns whether any part was in training mode.

    Constant parameters spare the weight gradients of every backward pass: FAB runs 1.5 times as fast.
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


class Oracle:
    """A frozen model whose passes are counted in examples; call it like the model itself.

    `on_pass` runs after every forward pass, for progress only.
    """

    def __init__(self, model: nn.Module, device: torch.device, on_pass: Callable[[], None] = lambda: None) -> None:
        self.device = device
        self.forwards = 0
        self.backwards = 0
        self.was_training = freeze(model)
        self.model = model.to(device)
        self._on_pass = on_pass

    def __call__(self, images: Images) -> Logits:
        """Returns logits `(n, classes)` of images `(n, c, h, w)`, differentiable where the images are."""
        logits: Tensor = self.model(images)
        self.forwards += len(images)
        if getattr(logits, "requires_grad", False):  # a hostile model may return anything
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._on_pass()
        return logits

    @torch.no_grad()
    def logits(self, images: Images) -> Logits:
        """Returns checked logits on the CPU.

        Raises `ModelError` where the model refuses the images or does not give one finite row per image.
        """
        try:
            output = self(images.to(self.device))
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
        raise ModelError(f"expected the model to return a tensor of logits, got {type(output).__name__}")
    if output.ndim != 2 or len(output) != n or output.shape[1] < 2:
        raise ModelError(f"expected logits of shape ({n}, classes), got {tuple(output.shape)}")
    broken = int((~torch.isfinite(output)).any(dim=1).sum())
    if broken:
        raise ModelError(
            f"the model gives NaN or infinite logits on {broken} of {n} images: check the weights and the normalisation"
        )
    return output
