"""Shapes of rows as a layer sees them, and how kernels move over them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def rows_and_features(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(..., C) as (rows, C)."""
    return (math.prod(shape[:-1]), shape[-1])


def as_image(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A signal (N, C, L) is an image of one row."""
    return shape if len(shape) != 3 else (*shape[:2], 1, shape[2])


def window(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """How a kernel moves over an image; with as much around it at both ends."""
    kernel = tuple(attributes["kernel_shape"])
    strides = tuple(attributes.get("strides", (1,) * len(kernel)))
    ends = tuple(attributes.get("pads", (0,) * 2 * len(kernel)))
    pads = tuple(map(max, ends[: len(kernel)], ends[len(kernel) :]))
    dilations = tuple(attributes.get("dilations", (1,) * len(kernel)))
    # Of a dilated kernel the row is a dense one that writes as many pixels.
    pads = tuple(
        max(pad - (apart - 1) * (taps - 1) // 2, 0)
        for pad, apart, taps in zip(pads, dilations, kernel, strict=True)
    )
    if len(kernel) == 1:
        kernel, strides, pads = (1, *kernel), (1, *strides), (0, *pads)
    return {"kernel": kernel, "stride": strides, "padding": pads}
