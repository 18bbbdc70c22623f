"""The kinds of quantized rows that a runtime may refuse as a kind, and one INT8 row of each.

TensorRT has no INT8 kernel for some operators, by release and by GPU, and a strongly typed network
has nothing to fall back to: one build of each kind tells what a board takes, before hours are spent
on it (NVIDIA/TensorRT#4832: on an Orin, TensorRT 10.16 of JetPack 7.2 fails on a dequantize with an
FP16 scale that it takes on a Thor).
"""

from __future__ import annotations

from typing import Any

from hwloop.records import LayerConfig

THIN_CHANNELS = 16
"""A convolution that reads fewer channels has kernels of its own: the network's first one."""

_POOLS = {"maxpool": "max pool", "avgpool": "average pool", "globalavgpool": "global average pool"}
_INT8 = {"precision_in": "int8", "precision": "int8", "precision_out": "int8"}
_SHAPE, _CHANNELS = (1, 64, 14, 14), 64


QUANTIZED = ("int8", "fp8")
"""Precisions whose rows have a kind."""


def kind_of(config: LayerConfig) -> str:
    """What the kernels of a row have in common, in words: operator, window, what is fused to it.

    Widths, sizes and bias are not part of it, so rows of one kind are built of the same kernels or
    refused together: ``conv 3x3 strided, add, relu``, ``depthwise conv 3x3, clip``. Of precisions
    only FP8 is named, which a GPU may have no kernels for at all.
    """
    tail = [word.partition(":")[0] for word in config.tail]
    first = "FP8 " * (config.precision == "fp8") + _operator(config)
    words = [first, *(word for word in tail if word not in ("bias", "plain"))]
    return ", ".join(word for word in words if word)


def _operator(config: LayerConfig) -> str:
    if config.op == "elementwise":
        return ""  # the tail alone
    sparse = " 2:4" if config.sparsity == "2:4" else ""
    if config.op != "conv":
        return _POOLS.get(config.op, config.op) + sparse
    per_group = config.in_shape[1] // config.groups
    kind = "conv"
    if config.groups > 1:
        kind = "depthwise conv" if per_group == 1 else "grouped conv"
    elif per_group < THIN_CHANNELS:
        kind = "thin conv"
    kernel = "x".join(map(str, config.kernel))
    strided = " strided" if max(config.stride) > 1 else ""
    return f"{kind} {kernel}{strided}{sparse}"


def _row(op: str, **changes: Any) -> LayerConfig:
    values = {"op": op, "in_shape": _SHAPE, "out_channels": _CHANNELS, **_INT8, **changes}
    return LayerConfig(**values)


def _conv(kernel: int, *tail: str, **changes: Any) -> LayerConfig:
    window = {"kernel": (kernel, kernel), "padding": (kernel // 2, kernel // 2)}
    return _row("conv", tail=("bias", *tail), **window, **changes)


def _int8_rows() -> tuple[LayerConfig, ...]:
    strided = {"stride": (2, 2)}
    halved = {"kernel": (2, 2), "stride": (2, 2)}
    return (
        _row("quantize", precision_in="fp16"),
        _row("dequantize", precision="fp16", precision_out="fp16"),
        _conv(1),
        _conv(1, "relu"),
        _conv(1, **strided),
        _conv(3),
        _conv(3, "relu"),
        _conv(3, "relu", **strided),
        _conv(3, "add", "relu"),
        _conv(1, "add", "relu"),
        _conv(1, "add", "relu", **strided),
        _conv(1, "add"),
        _conv(1, in_shape=(1, 8, 14, 14)),
        _conv(1, "relu", in_shape=(1, 8, 14, 14)),
        _conv(1, "add", "relu", in_shape=(1, 8, 14, 14)),
        _conv(1, "add", "relu", in_shape=(1, 8, 14, 14), **strided),
        _conv(3, in_shape=(1, 8, 14, 14)),
        _conv(3, "add", "relu", in_shape=(1, 8, 14, 14)),
        _conv(3, "relu", in_shape=(1, 3, 32, 32)),
        _conv(3, "relu", in_shape=(1, 3, 32, 32), **strided),
        _conv(7, "relu", in_shape=(1, 3, 32, 32), **strided),
        _conv(3, "clip:0:6", groups=_CHANNELS),
        _conv(3, "clip:0:6", groups=_CHANNELS, **strided),
        _conv(5, "hardswish", groups=_CHANNELS),
        _conv(3, "relu", groups=2),
        _conv(3, "relu", groups=2, **strided),
        _conv(1, "clip:0:6"),
        _conv(1, "hardswish"),
        _conv(1, "sigmoid"),
        _conv(1, "tanh"),
        _row("linear", in_shape=(64, 64), tail=("bias",)),
        _row("linear", in_shape=(64, 64), tail=("bias", "relu")),
        _row("maxpool", **halved),
        _row("avgpool", **halved),
        _row("globalavgpool"),
        _row("elementwise", tail=("add",)),
        _row("elementwise", tail=("add", "relu")),
        _row("concat"),
    )


INT8_KINDS: tuple[tuple[str, LayerConfig], ...] = tuple(
    (kind_of(config), config) for config in _int8_rows()
)
"""(kind, a row of it) for every kind of INT8 row: small, so that a build takes about a second."""
