"""What a runtime is to the host: where it runs, and what it makes of a graph.

A runtime is one class here, one in :mod:`hwloop.device` and a profile. Nothing else of hwloop
compares its name, or that of its recipe: whatever depends on either is asked of this class.
Importing a runtime imports no framework; writing a graph does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray

from hwloop.errors import CandidateError
from hwloop.records import LayerConfig

LARGEST_BYTES = 2_000_000_000
"""ONNX keeps up to 2 GiB in one file; Q and DQ nodes take a little more than the float graph."""


class Runtime:
    """The graphs of one recipe on one kind of machine; what it says of itself holds for a CPU.

    Args:
        recipe: one of :attr:`recipes`.
        isa: the target's instruction sets, ``+``-separated; empty where they are not known.

    Attributes:
        name: as profiles and fingerprints have it.
        recipes: the ways to write int8 into a file that are this runtime's; the first is meant
            where a profile leaves it open and nothing is known of the machine.
        base_precisions: what an unquantized layer may run in.
        on_cpu: it runs on the cores that its worker may use, by their instruction sets.
        on_gpu: its figures are without copies to and from a graphics card, and its device may
            have power rails.
        ships_engine: a network ships as an engine that was built where it runs.
        needs_device_alone: nobody else may measure on the machine, also where it is this one.
        is_simulated: its latencies are computed.
        has_fp8: it has kernels for it, on some of its devices.
        tries_int8_kinds: one row of each kind of quantized row is built before any is timed,
            because there is nothing to fall back to.
        dequantizes: a float layer that reads an int8 tensor costs a row of its own.
    """

    name: ClassVar[str] = ""
    recipes: ClassVar[tuple[str, ...]] = ()
    base_precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    on_cpu: ClassVar[bool] = True
    on_gpu: ClassVar[bool] = False
    ships_engine: ClassVar[bool] = False
    needs_device_alone: ClassVar[bool] = False
    is_simulated: ClassVar[bool] = False
    has_fp8: ClassVar[bool] = False
    tries_int8_kinds: ClassVar[bool] = False
    dequantizes: ClassVar[bool] = True

    def __init__(self, recipe: str, isa: str = "") -> None:
        self.recipe = recipe
        self.isa = isa

    # ------------------------------------------------------------------------ where it runs

    @classmethod
    def recipe_for(cls, isa: str) -> str:
        """The recipe for instruction sets that were found."""
        return cls.recipes[0]

    @classmethod
    def align_for(cls, isa: str) -> int:
        """Channels that widths are best multiples of."""
        return 8

    @classmethod
    def computed_by(cls, found: str) -> str:
        """What computes the outputs that are scored, of a worker that says it is ``found``."""
        return found

    @classmethod
    def install(cls, *, target: str, python: str, remote: bool) -> str:
        """The command that installs what a worker did not find.

        Args:
            python: the interpreter of the worker.
            remote: it is at the other end of ssh.
        """
        return f"hwloop doctor --target {target}"

    # -------------------------------------------------------------------- what it makes of a graph

    def int8_pays(self, config: LayerConfig, *, out_channels: int, first: bool) -> bool:
        """Whether it has int8 kernels for such a layer that are worth having.

        Args:
            first: the layer reads the network's input, whose few channels do not count.
        """
        return True

    def fp8_pays(self, config: LayerConfig, *, out_channels: int) -> bool:
        """Whether it has FP8 kernels for such a layer that are worth having."""
        return False

    def quantized(
        self,
        graph: bytes,
        nodes: Sequence[str],
        *,
        calibration: NDArray[Any],
        fp8: Sequence[str] = (),
    ) -> bytes:
        """Quantize the named weighted nodes and what it keeps in int8 around them.

        Args:
            graph: an exported FP32 graph.
            nodes: names of convolutions and linear layers.
            fp8: names of those that are to be FP8, where :meth:`fp8_pays`.
            calibration: (N, ...) real inputs; ranges are the extremes seen.

        Raises:
            CandidateError: stage ``compress``: the graph cannot be quantized.
            EnvironmentProblem: ONNX Runtime, which finds the ranges, is not installed.
        """
        if len(graph) > LARGEST_BYTES:
            size_gb = len(graph) / 1e9
            raise CandidateError(
                "compress", f"INT8: the graph has {size_gb:.1f} GB, 2 at most can be"
            )
        return self._with_qdq(graph, nodes, fp8, calibration)

    def _with_qdq(
        self, graph: bytes, int8: Sequence[str], fp8: Sequence[str], calibration: NDArray[Any]
    ) -> bytes:
        """The graph with its quantize and dequantize nodes: no file suits two runtimes."""
        raise NotImplementedError

    def row_graph(self, config: LayerConfig) -> bytes:
        """One fused block as an ONNX graph of its own; its weights are seeded random numbers.

        It is what the runtime makes of such a block *within* a network: an int8 row takes and
        gives int8 tensors, so that no change of precision is timed with it.
        """
        raise NotImplementedError

    def rehearse(self, graph: bytes) -> None:
        """Have a graph that ships checked without its device, as far as anything here can.

        Raises:
            CandidateError: it is refused.
        """
