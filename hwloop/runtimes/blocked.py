"""Rows of ONNX Runtime on x86, where float tensors of convolutions lie in blocks of channels.

Between convolutions the runtime keeps tensors in blocks of so many channels as its vectors hold
(its NCHWc layout), and adds a residual within the kernel. A convolution alone would be given and
would give tensors channels first, and pay for both; so its row is written in the operators that the
runtime itself makes of it (``onnxruntime/core/optimizer/nchwc_transformer.cc``), and a change of
precision leaves the blocks or enters them.
"""

from __future__ import annotations

from typing import Any

from hwloop.records import LayerConfig
from hwloop.runtimes.rowgraph import window
from hwloop.runtimes.rows import OrtRow, channels_last

_DOMAIN = "com.microsoft.nchwc"
_FUSED = {
    **{"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"},
    **{"clip": "Clip", "hardswish": "HardSwish"},
}
_POOLS = {"maxpool": "MaxPool", "avgpool": "AveragePool"}
MOST_COLORS = 4
"""A convolution that reads no more channels reads an image: the network's input."""


def block_of(isa: str) -> int | None:
    """Channels in a block, by the instruction sets; None where the runtime has no such kernels."""
    flags = isa.split("+")
    return 16 if "avx512f" in flags else 8 if "avx2" in flags else None


def is_blocked(config: LayerConfig, block: int) -> bool:
    """Whether the runtime keeps an operator's tensors in blocks."""
    if len(config.in_shape) != 4:
        return False
    channels, height, width = config.in_shape[1:]
    if height == 1 < width and config.kernel[0] == 1:
        return False  # a signal, which the runtime does not know as an image
    if config.op in ("quantize", "dequantize") and config.tail == ("plain",):
        return False
    if config.op == "quantize":
        return channels > MOST_COLORS
    if config.op == "dequantize":
        return channels >= block
    if config.op in _POOLS:
        return config.precision == "fp32" and channels % block == 0
    return config.precision == "fp32" and config.op in ("conv", "batchnorm")


class BlockedRow(OrtRow):
    """A row of a convolution or a pool, from blocks to blocks, or of a change of precision.

    Args:
        block: channels in each.
    """

    domains: tuple[str, ...] = (_DOMAIN,)

    def __init__(self, config: LayerConfig, block: int) -> None:
        super().__init__(config)
        self.block = block

    def build(self) -> bytes:
        config = self.config
        if config.op == "quantize":
            self._int8_output(
                self._node("QuantizeLinear", [self._reordered(), *self._scale()], "quantized")
            )
            return self._finish(channels_last(config.in_shape), "int8")
        if config.op == "dequantize":
            value = self._dequantized_by_channel(self._int8_input("input", config.in_shape))
            self._node("ReorderInput", [value], "output", domain=_DOMAIN, channels_last=0)
            return self._finish(self._written(), "fp32")
        if config.op in _POOLS:
            value = self._input("input", config.in_shape, "fp32")
            op, attributes = _POOLS[config.op], window(config)
            self._node(op, [value], "output", domain=_DOMAIN, **attributes)
            return self._finish(self._written(), "fp32")
        if config.op == "batchnorm":
            return self._norm()
        value = self._convolution() if self._has_blocked_kernel() else self._plain()
        for step in config.tail:
            if step not in ("bias", "add") and step.split(":")[0] not in _FUSED:
                value = self._activated(step, value, f"{step}{len(self.nodes)}")
        self.nodes[-1].output[0] = "output"
        return self._finish(self._written(), "fp32")

    def _has_blocked_kernel(self) -> bool:
        """Groups have one where they are whole blocks, or of one channel."""
        config = self.config
        inputs, outputs = (
            count // config.groups for count in (config.in_shape[1], config.out_channels)
        )
        return (
            config.groups == 1
            or inputs == outputs == 1
            or not (inputs % self.block or outputs % self.block)
        )

    def _convolution(self) -> str:
        config = self.config
        channels, outputs = config.in_shape[1], self._padded(config.out_channels)
        groups = config.groups
        if groups == 1:
            thin = channels < self.block
            value = self._channels_first() if thin else self._blocks()
            shape = (outputs, channels if thin else self._padded(channels), *config.kernel)
        elif groups == channels:
            groups, value = outputs, self._blocks()
            shape = (outputs, 1, *config.kernel)
        else:
            value, shape = self._blocks(), (outputs, channels // groups, *config.kernel)
        inputs = [value, self._quantizable(shape), self._weight(self._values(outputs))]
        if "add" in config.tail:
            inputs.append(self._input("residual", self._written(), "fp32"))
        attributes = {**window(config), "group": groups, **self._activation()}
        return self._node("Conv", inputs, "conv", domain=_DOMAIN, **attributes)

    def _plain(self) -> str:
        """Groups without such a kernel: channels first, between changes of the layout."""
        config = self.config
        shape = (config.out_channels, config.in_shape[1] // config.groups, *config.kernel)
        inputs = [self._reordered(), self._quantizable(shape), self._weight(self._values(shape[0]))]
        value = self._node("Conv", inputs, "conv", group=config.groups, **window(config))
        for step in config.tail:
            if step.split(":")[0] in _FUSED:
                value = self._tail_step(step, value, config.in_shape)
        value = self._node("ReorderInput", [value], "blocks", domain=_DOMAIN, channels_last=0)
        if "add" in config.tail:
            other = self._input("residual", self._written(), "fp32")
            value = self._node("Add", [value, other], "sum")
        return value

    def _norm(self) -> bytes:
        """Behind a concatenation, whose parts are rarely whole blocks: it enters them."""
        value = self._batch_norm(self._input("input", self.config.in_shape, "fp32"))
        for step in self.config.tail:
            value = self._tail_step(step, value, self.config.in_shape)
        self._node("ReorderInput", [value], "output", domain=_DOMAIN, channels_last=0)
        return self._finish(self._written(), "fp32")

    def _blocks(self) -> str:
        shape = self.config.in_shape
        return self._input("input", (shape[0], self._padded(shape[1]), *shape[2:]), "fp32")

    def _channels_first(self) -> str:
        """The network's input as it is; others come out of blocks."""
        if self.config.in_shape[1] <= MOST_COLORS:
            return self._input("input", self.config.in_shape, "fp32")
        return self._reordered()

    def _reordered(self) -> str:
        attributes = {"channels_last": 0, "channels": self.config.in_shape[1]}
        return self._node("ReorderOutput", [self._blocks()], "first", domain=_DOMAIN, **attributes)

    def _activation(self) -> dict[str, Any]:
        for step in self.config.tail:
            word, *bounds = step.split(":")
            if word in _FUSED:
                limits = {"activation_params": [float(item) for item in bounds]} if bounds else {}
                return {"activation": _FUSED[word], **limits}
        return {}

    def _values(self, count: int) -> Any:
        return self.rng.standard_normal(count).astype(self.floats)

    def _written(self) -> tuple[int, ...]:
        """The shape of its output, in whole blocks."""
        config = self.config
        return (config.in_shape[0], self._padded(config.out_channels), *config.out_sides)

    def _padded(self, channels: int) -> int:
        return -(-channels // self.block) * self.block
