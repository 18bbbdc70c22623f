"""CUDA by pycuda, in the primary context and never by ``pycuda.autoinit``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hwloop.device.cuda import NON_BLOCKING, CudaError, DeviceProperties, version_text

if TYPE_CHECKING:
    from hwloop.device.cuda import Bytes


class PyCuda:
    """pycuda's driver API, which has no stream capture."""

    name = "pycuda"
    can_graph = False

    def __init__(self) -> None:
        self._driver = importlib.import_module("pycuda.driver")
        self._driver.init()
        self._device = self._driver.Device(0)
        self._context = self._device.retain_primary_context()
        self._allocations: dict[int, Any] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def properties(self) -> DeviceProperties:
        attribute = self._driver.device_attribute
        return DeviceProperties(
            name=str(self._device.name()),
            compute_capability=".".join(map(str, self._device.compute_capability())),
            sm_count=int(self._device.get_attribute(attribute.MULTIPROCESSOR_COUNT)),
            memory_bytes=int(self._device.total_memory()),
            integrated=bool(self._device.get_attribute(attribute.INTEGRATED)),
            driver_version=version_text(self._driver.get_driver_version()),
        )

    def memory_info(self) -> tuple[int, int]:
        free, total = self._driver.mem_get_info()
        return int(free), int(total)

    def alloc(self, size_bytes: int) -> int:
        allocation = self._driver.mem_alloc(size_bytes)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._allocations.pop(address).free()

    def alloc_pinned(self, size_bytes: int) -> Bytes:
        memory: Bytes = self._driver.pagelocked_empty(size_bytes, np.uint8)
        return memory

    def free_pinned(self, memory: Bytes) -> None:
        allocation: Any = memory.base
        allocation.free()

    def to_device(self, address: int, source: np.ndarray[Any, Any], stream: Any) -> None:
        self._driver.memcpy_htod_async(address, source, stream)

    def to_host(self, target: np.ndarray[Any, Any], address: int, stream: Any) -> None:
        self._driver.memcpy_dtoh_async(target, address, stream)

    def new_stream(self) -> Any:
        return self._driver.Stream(NON_BLOCKING)

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        stream.synchronize()

    def free_stream(self, stream: Any) -> None:
        """pycuda destroys it with its last reference."""

    def new_event(self) -> Any:
        return self._driver.Event()

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(end.time_since(start))

    def free_event(self, event: Any) -> None:
        """pycuda destroys it with its last reference."""

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        raise CudaError("pycuda cannot capture a graph; cudart and cuda-bindings can")

    def replay(self, graph: Any, stream: Any) -> None:
        raise CudaError("pycuda cannot replay a graph")

    def free_graph(self, graph: Any) -> None:
        raise CudaError("pycuda has no graphs")
