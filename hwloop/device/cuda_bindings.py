"""CUDA by NVIDIA's cuda-bindings, which captures and replays graphs, as the library itself does."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hwloop.device.cuda import NON_BLOCKING, CudaError, DeviceProperties, version_text

if TYPE_CHECKING:
    from hwloop.device.cuda import Bytes


class CudaBindings:
    """NVIDIA's cuda-bindings; every call returns its error first."""

    name = "cuda-bindings"
    can_graph = True

    def __init__(self) -> None:
        self._rt: Any = importlib.import_module("cuda.bindings.runtime")
        self._call("cudaSetDevice", 0)

    def _call(self, name: str, *args: Any) -> Any:
        error, *values = getattr(self._rt, name)(*args)
        if int(error) != 0:
            _, text = self._rt.cudaGetErrorString(error)
            raise CudaError(f"{name}: {text.decode(errors='replace')} ({int(error)})")
        return values[0] if len(values) == 1 else tuple(values)

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call("cudaSetDevice", 0)
        yield

    def properties(self) -> DeviceProperties:
        found = self._call("cudaGetDeviceProperties", 0)
        return DeviceProperties(
            name=found.name.decode(errors="replace").rstrip("\0"),
            compute_capability=f"{found.major}.{found.minor}",
            sm_count=int(found.multiProcessorCount),
            memory_bytes=int(found.totalGlobalMem),
            integrated=bool(found.integrated),
            driver_version=version_text(self._call("cudaDriverGetVersion")),
        )

    def memory_info(self) -> tuple[int, int]:
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def alloc(self, size_bytes: int) -> int:
        return int(self._call("cudaMalloc", size_bytes))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def alloc_pinned(self, size_bytes: int) -> Bytes:
        address = int(self._call("cudaMallocHost", size_bytes))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def free_pinned(self, memory: Bytes) -> None:
        self._call("cudaFreeHost", memory.ctypes.data)

    def to_device(self, address: int, source: np.ndarray[Any, Any], stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, kind, stream)

    def to_host(self, target: np.ndarray[Any, Any], address: int, stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, kind, stream)

    def new_stream(self) -> Any:
        return self._call("cudaStreamCreateWithFlags", NON_BLOCKING)

    def handle(self, stream: Any) -> int:
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        self._call("cudaStreamSynchronize", stream)

    def free_stream(self, stream: Any) -> None:
        self._call("cudaStreamDestroy", stream)

    def new_event(self) -> Any:
        return self._call("cudaEventCreate")

    def record(self, event: Any, stream: Any) -> None:
        self._call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self._call("cudaEventElapsedTime", start, end))

    def free_event(self, event: Any) -> None:
        self._call("cudaEventDestroy", event)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except Exception as error:
            # The capture must end whatever happens, or the stream stays unusable.
            self._rt.cudaStreamEndCapture(stream)
            self._rt.cudaGetLastError()
            raise CudaError(f"nothing was captured: {error}") from error
        try:
            captured = self._call("cudaStreamEndCapture", stream)
        except CudaError:
            self._rt.cudaGetLastError()  # else the next call reports this error again
            raise
        try:
            return self._call("cudaGraphInstantiate", captured, 0)
        finally:
            self._call("cudaGraphDestroy", captured)

    def replay(self, graph: Any, stream: Any) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def free_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)
