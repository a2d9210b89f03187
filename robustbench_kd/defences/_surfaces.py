"""Surfaces that several families declare."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.defence import Answer, Key, Surface

DRAWS = 10


@dataclass(frozen=True)
class ModuleAnswer:
    """The answer of one module, which ignores the key.

    Answers of the same module are equal, so that an ensemble asks the module once.
    """

    module: nn.Module

    def __call__(self, images: Images, key: Key) -> Logits:
        """Returns the logits of the module."""
        logits: Logits = self.module(images)
        return logits


def backbone(part: nn.Module) -> Surface:
    """Returns the part alone, without the defence around it."""
    return Surface(name="backbone", answer=ModuleAnswer(part))


def shared_noise(draw: Answer) -> Surface:
    """Returns one draw of each row that is the same at every step.

    Source: Carlini et al. 2019 (arXiv 1902.06705): an attack must succeed with the randomness
    fixed.
    """
    return Surface(
        name="shared-noise",
        answer=lambda images, key: draw(images, replace(key, draw=key.draw * 0)),
    )


def expected(draw: Answer, name: str = "expected") -> Surface:
    """Returns ten draws of each row, `(10, n, classes)`, other draws for every key.

    Source: expectation over transformation, Athalye et al. 2018 (arXiv 1802.00420), section 4.2.
    """

    def answer(images: Images, key: Key) -> Logits:
        logits = draw(images.repeat(DRAWS, 1, 1, 1), key.repeated(DRAWS))
        return torch.unflatten(logits, 0, (DRAWS, len(images)))

    return Surface(name=name, answer=answer, passes=DRAWS, same_outputs=True)


def gaussian(images: Images, key: Key) -> Tensor:
    """Returns standard normal noise of the images' shape, one draw of each row."""
    return key.normal("noise", images[0].numel()).to(images.dtype).view_as(images)
