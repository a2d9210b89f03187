"""Gradients of convolutions of few channels.

The library's against those in blocks, for 64 images on one thread of a CPU. All are taken in turn,
and the best of many counts. Run it by `python benchmarks/input_convolution.py`.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import nn

from robustbench_kd.engine.passes.input_convolution import InputConvolution

ROUNDS, ROWS = 20, 64
LEAST = 0.01  # seconds of one measurement
# Channels in and out, side of the image, kernel, stride, padding.
LAYERS = [
    *(
        (channels, 16, side, 3, stride, 1)
        for side, stride, channels in product((8, 32), (1, 2), (1, 3, 8, 16))
    ),
    (3, 64, 64, 7, 2, 3),
    (3, 128, 64, 8, 8, 0),
]


def best(ways: list[Callable[[], object]]) -> list[float]:
    found = [float("inf")] * len(ways)
    for _ in range(ROUNDS):
        for place, way in enumerate(ways):
            turns = max(1, int(LEAST / min(found[place], LEAST)))
            start = time.perf_counter()
            for _ in range(turns):
                way()
            found[place] = min(found[place], (time.perf_counter() - start) / turns)
    return found


def main() -> None:
    torch.set_num_threads(1)
    print(
        "| channels | side | kernel | stride | forward, ms | gradient, ms | in blocks, ms | ratio |"
    )
    print("| --: | --: | --: | --: | --: | --: | --: | --: |")
    for channels, outputs, side, kernel, stride, padding in LAYERS:
        layer = nn.Conv2d(channels, outputs, kernel, stride, padding).requires_grad_(False)
        narrow, images = (
            InputConvolution(layer),
            torch.rand(ROWS, channels, side, side, requires_grad=True),
        )
        outcome = layer(images)
        slope = torch.randn_like(outcome)

        library = partial(torch.autograd.grad, outcome, images, slope, retain_graph=True)
        ways = [
            partial(layer, images.detach()),
            library,
            partial(narrow.gradient, slope, side, side),
        ]
        once, theirs, ours = (1e3 * seconds for seconds in best(ways))
        shape = f"| {channels} to {outputs} | {side} | {kernel} | {stride} |"
        print(f"{shape} {once:.2f} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
