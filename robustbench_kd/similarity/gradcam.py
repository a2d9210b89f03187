"""Grad-CAM: where in an image a network finds a class (Selvaraju et al. 2017)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.core.errors import ModelError
from robustbench_kd.tensors.contracts import Images, Labels


def last_map(network: nn.Module, images: Images) -> nn.Module | None:
    """Returns the last module that gives feature maps `(n, c, h, w)` of more than one pixel, None where none does."""
    seen: list[nn.Module] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        if (
            isinstance(output, Tensor)
            and output.ndim == 4
            and output.shape[2] * output.shape[3] > 1
        ):
            seen.append(module)

    hooks = [
        module.register_forward_hook(note) for module in network.modules() if module is not network
    ]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen[-1] if seen else None


def gradcam(network: nn.Module, layer: nn.Module, images: Images, labels: Labels) -> Tensor:
    """Returns how much each pixel speaks for the label, `(n, h, w)` from 0 on.

    The maps of a layer are added up with the mean gradients of the label's logit as weights, cut
    off at zero and enlarged to the size of the image. The network's parameters may be constant.
    Raises `ModelError` where the layer is not passed.
    """
    maps: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, __, output: maps.append(output))
    try:
        logits = network(images.detach().requires_grad_())
    finally:
        hook.remove()
    if not maps:
        raise ModelError(
            "the layer of Grad-CAM is not passed on the way to the answer: its network changes its course"
        )
    value = logits.gather(1, labels[:, None]).sum()
    (slopes,) = torch.autograd.grad(value, maps[-1], materialize_grads=True)
    found = (
        (slopes.mean(dim=(2, 3), keepdim=True) * maps[-1].detach()).sum(dim=1, keepdim=True).relu()
    )
    size = list(images.shape[2:])
    return functional.interpolate(found, size=size, mode="bilinear", align_corners=False)[:, 0]
