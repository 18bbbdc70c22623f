"""ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray

from hwloop.records import LayerConfig
from hwloop.runtimes.runtime import Runtime

X86, ARM = "ort-x86", "ort-arm"
WIDE_ALIGN, NARROW_ALIGN = 16, 8


class OnnxRuntime(Runtime):
    """Asymmetric uint8 activations; on x86 without VNNI weights of seven bits.

    Attributes:
        protects_float: float layers and pools next to int8 ones are written so that its own passes
            leave them float.
    """

    name = "onnxruntime"
    protects_float: ClassVar[bool] = True
    recipes: ClassVar[tuple[str, ...]] = (X86, ARM)

    @classmethod
    def recipe_for(cls, isa: str) -> str:
        return ARM if "asimd" in isa.split("+") else X86

    @classmethod
    def align_for(cls, isa: str) -> int:
        """FP32 convolutions on AVX-512 pad to 16 channels.

        With VNNI the int8 kernels are the fast ones, and they do gain from 8 (16 to 8 channels at
        28x28: 20.8 to 14.6 microseconds).
        """
        flags = isa.split("+")
        wide = "avx512f" in flags and not any("vnni" in flag for flag in flags)
        return WIDE_ALIGN if wide else NARROW_ALIGN

    @classmethod
    def install(cls, *, target: str, python: str, remote: bool) -> str:
        on_board = f"on the board: {python} -m pip install numpy onnxruntime"
        return on_board if remote else 'pip install "hwloop[cpu]"'

    @property
    def reduces_range(self) -> bool:
        """Whether weights have seven bits: the 16-bit sums of x86 without VNNI would saturate."""
        return self.recipe == X86 and "vnni" not in self.isa

    def _with_qdq(
        self, graph: bytes, int8: Sequence[str], fp8: Sequence[str], calibration: NDArray[Any]
    ) -> bytes:
        from hwloop.runtimes.qdq_ort import quantize_ort

        return quantize_ort(
            graph,
            int8,
            calibration=calibration,
            reduce_range=self.reduces_range,
            protect=self.protects_float,
        )

    def row_graph(self, config: LayerConfig) -> bytes:
        from hwloop.runtimes.blocked import BlockedRow, block_of, is_blocked
        from hwloop.runtimes.rows import OrtRow

        block = block_of(self.isa) if self.recipe == X86 else None
        if block is not None and is_blocked(config, block):
            return BlockedRow(config, block).build()
        return OrtRow(config).build()
