"""Grad-CAM: which pixels of an image support a class (Selvaraju et al. 2017)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.core.errors import ModelError
from robustbench_kd.tensors.contracts import Images, Labels


def last_map(network: nn.Module, images: Images) -> nn.Module | None:
    """Returns the last module whose output is feature maps, None if there is none.

    Feature maps are `(n, c, h, w)` and have more than one pixel.
    """
    last: nn.Module | None = None

    def note(module: nn.Module, _: object, output: object) -> None:
        nonlocal last
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1:
            last = module

    modules = [module for module in network.modules() if module is not network]
    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return last


def gradcam(network: nn.Module, layer: nn.Module, images: Images, labels: Labels) -> Tensor:
    """Returns how much each pixel supports the label, `(n, h, w)`, at least 0.

    The maps of a layer are added up with the mean gradients of the label's logit as weights, cut
    off at zero and enlarged to the size of the image. The network's parameters may be constant.
    Raises `ModelError` if the network does not run the layer.
    """
    maps: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, __, output: maps.append(output))
    try:
        logits = network(images.detach().requires_grad_())
    finally:
        hook.remove()
    if not maps:
        raise ModelError(
            "expected the network to run the layer of Grad-CAM for every image, but it did not: "
            "its layers depend on the images"
        )

    value = logits.gather(1, labels[:, None]).sum()
    (slopes,) = torch.autograd.grad(value, maps[-1], materialize_grads=True)
    weighted = slopes.mean(dim=(2, 3), keepdim=True) * maps[-1].detach()
    support = weighted.sum(dim=1, keepdim=True).relu()
    size = list(images.shape[2:])
    return functional.interpolate(support, size=size, mode="bilinear", align_corners=False)[:, 0]
