"""Advice by cause: what to do when a model raises on images, read from what torch says of it."""

import re

_QUERIES = "use --suite square, which asks for answers alone, or compute with tensors of torch"

# The first pattern that fits the name and the text of an error gives its advice; the wording is
# that of Python and torch.
_ADVICE = {
    r"^TypeError: .*(missing \d+ required|positional argument|unexpected keyword)": (
        "the images alone are given: wrap the model in a module whose forward(images) adds the rest"
    ),
    r"numpy\(\) on Tensor that requires grad|does not require grad|(?i:inference tensor)": (
        f"the model has no gradient: {_QUERIES}"
    ),
    r"use_reentrant": "give use_reentrant=False to torch.utils.checkpoint, or use --suite square",
    r"modified by an inplace|in-place operation|being modified inplace": (
        "compute out of place where a gradient passes (x = x * 2, not x.mul_(2); inplace=False), "
        "or use --suite square"
    ),
    r"derivative for .* is not implemented|does not support automatic|not differentiable": (
        f"a part of the model has no derivative: {_QUERIES}"
    ),
    r"(?i)nvidia driver|cuda (error|is not|unknown)|with cuda|(same|expected) device|device type": (
        "the model chooses a device by itself: let it compute where its images are (x.device, "
        "buffers in place of plain tensors), or choose that device by --device"
    ),
    r"(?i)dtype|scalar type|bias type|weight type|not implemented for '": (
        "images come as float32: convert the model by .float(), or let its forward convert them"
    ),
    r"(?i)uninitialized parameter": (
        "a lazy layer has no weights yet: call the model once on images in its factory"
    ),
    r"more than 1 value per channel": (
        "a batch norm uses the statistics of the batch, which one image does not have: let the "
        "model stay in evaluation mode"
    ),
    r"view size is not compatible|contiguous": (
        "the memory layout does not fit: use .reshape in place of .view"
    ),
    r"is invalid for input of size": (
        "a number in .view or .reshape does not fit: use len(images) for the batch, or choose the "
        "data set it was trained on"
    ),
    r"(?i)channels|multiplied|size of tensor|kernel size|shape|size mismatch|too small|image size"
    r"|height|spatial": "choose the data set it was trained on, or its size (folder:PATH@SIZE)",
}


def advice(error: BaseException) -> str:
    """Returns what to do about an error that a model raised; empty where its cause is not known.

    >>> advice(RuntimeError("Input type (float) and bias type (c10::Half) should be the same"))
    'images come as float32: convert the model by .float(), or let its forward convert them'
    """
    text = f"{type(error).__name__}: {error}"
    return next((found for pattern, found in _ADVICE.items() if re.search(pattern, text)), "")
