"""Are training steps faster with channels side by side, over torchvision's families?

Random weights, float32, batches of 32 images of 64 pixels: one forward and one backward pass in
each order, in turns. ``python benchmarks/layout.py`` (four minutes).
"""

from __future__ import annotations

import statistics
import time

import torch
from common import write_result
from torch import nn
from torchvision import models

from hwloop.compress.layout import channels_last, suits_channels_last

NETWORKS = (
    *("resnet18", "resnext50_32x4d", "regnet_y_400mf", "vgg11_bn", "densenet121", "squeezenet1_1"),
    *("mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5"),
    *("efficientnet_b0", "convnext_tiny", "swin_t"),
)
BATCH, PIXELS, TURNS = 32, 64, 5


def passes_ms(module: nn.Module, inputs: torch.Tensor, *, suits: bool) -> float:
    """One forward and one backward pass; the first one, which prepares kernels, is not timed."""
    with channels_last(module, suits=suits):
        for _ in range(2):
            module.zero_grad()
            began = time.perf_counter()
            torch.autograd.backward(module(inputs).square().mean())
            took_ms = (time.perf_counter() - began) * 1e3
    return took_ms


def compared(name: str) -> dict[str, object]:
    """Median times of both orders, and of the ratios of their turns."""
    torch.manual_seed(0)
    module = models.get_model(name).train()
    inputs = torch.randn(BATCH, 3, PIXELS, PIXELS)
    turns = [
        (passes_ms(module, inputs, suits=False), passes_ms(module, inputs, suits=True))
        for _ in range(TURNS)
    ]
    found = {
        "network": name,
        "suits": suits_channels_last(module, inputs[:2]),
        "usual_ms": round(statistics.median(usual for usual, _ in turns), 1),
        "channels_last_ms": round(statistics.median(last for _, last in turns), 1),
        "gain": round(statistics.median(usual / last for usual, last in turns), 2),
    }
    print(*found.values(), flush=True)
    return found


def main() -> None:
    started = time.monotonic()
    networks = [compared(name) for name in NETWORKS]
    write_result("layout", {"networks": networks}, started=started)


if __name__ == "__main__":
    main()
