"""NVIDIA's TensorRT on a graphics card or a Jetson."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from hwloop.records import LayerConfig
from hwloop.runtimes.runtime import Runtime

INT8_CHANNELS = 16
FP8_CHANNELS = 16
DEPTHWISE_KERNEL = 3


class TensorRT(Runtime):
    """Strongly typed: precisions are those of the file, symmetric int8 and FP8 beside FP16."""

    name = "tensorrt"
    recipes = ("tensorrt",)
    base_precisions = ("fp32", "fp16")
    on_cpu = False
    on_gpu = True
    ships_engine = True
    needs_device_alone = True
    has_fp8 = True
    tries_int8_kinds = True
    dequantizes = False  # its int8 kernels write FP16 where nobody wants int8

    @classmethod
    def install(cls, *, target: str, python: str, remote: bool) -> str:
        where = "on the board" if remote else "here"
        return f"hwloop doctor --target {target}   tells what is missing {where}"

    def int8_pays(self, config: LayerConfig, *, out_channels: int, first: bool) -> bool:
        """By the rules of NVIDIA Model Optimizer 0.47 (``onnx.quantization.graph_utils``).

        No thin convolutions, no products of a matrix with a vector. Input channels are the dense
        network's, because the group that prunes them has a decision of its own.
        """
        if config.op == "linear":
            rows, features = config.in_shape
            return rows > 1 and features >= INT8_CHANNELS and out_channels >= INT8_CHANNELS
        in_channels = config.in_shape[1] // config.groups
        if config.groups > 1 and in_channels == 1:
            return out_channels % 8 == 0 and min(config.kernel) >= DEPTHWISE_KERNEL
        thin, wide = sorted((in_channels, out_channels))
        if first:
            return out_channels >= INT8_CHANNELS
        square = config.kernel[0] == config.kernel[1]
        eights = thin % 8 == 0 and wide % 8 == 0
        return thin >= INT8_CHANNELS or (wide >= INT8_CHANNELS and square and eights)

    def fp8_pays(self, config: LayerConfig, *, out_channels: int) -> bool:
        """For products of two matrices whose rows are of whole vectors of 16 numbers."""
        if config.op != "linear" or config.in_shape[0] == 1:
            return False
        return config.in_shape[1] % FP8_CHANNELS == 0 == out_channels % FP8_CHANNELS

    def _with_qdq(
        self, graph: bytes, int8: Sequence[str], fp8: Sequence[str], calibration: NDArray[Any]
    ) -> bytes:
        from hwloop.runtimes.qdq_tensorrt import quantize_tensorrt

        return quantize_tensorrt(graph, int8, fp8=fp8, calibration=calibration)

    def row_graph(self, config: LayerConfig) -> bytes:
        from hwloop.runtimes.fp8 import Fp8Row
        from hwloop.runtimes.rows import TensorRTRow

        return (Fp8Row if config.precision == "fp8" else TensorRTRow)(config).build()

    def rehearse(self, graph: bytes) -> None:
        """NVIDIA's own builder is the only one that can refuse, where its wheels are installed."""
        from hwloop.runtimes.proof import prove

        prove(graph)
