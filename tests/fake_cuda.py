"""A GPU made of arithmetic: it keeps its own time, and objects to whatever CUDA would object to."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from hwloop.device.cuda import CudaError, DeviceProperties


class Device:
    """What is shared by the CUDA backend and the fake TensorRT.

    The host goes its own way: a launch costs it ``launch_ms``, and what was launched begins when
    the host has launched it and the device has ended what it had. Waiting brings both together.

    Attributes:
        host_ms: time on the host; launching and waiting advance it.
        now_ms: when the device ends, or ended, what it was given.
        launch_ms: what a replay, or a plain run, costs the host.
        copy_ms_per_byte: of copies between host and device.
        drift: factor on every run's duration, by its begin.
        others_ms: what the work of others adds to every run's, by its begin.
        broken: an error of CUDA that every later call in this process gets.
        memory: address of each allocation and its bytes.
        live: TensorRT's objects that exist.
        depth: how often the context is current.
    """

    def __init__(self) -> None:
        self.host_ms = 0.0
        self.now_ms = 0.0
        self.launch_ms = 0.0
        self.copy_ms_per_byte = 0.0
        self.broken: str | None = None
        self.drift: Callable[[float], float] = lambda now_ms: 1.0
        self.others_ms: Callable[[float], float] = lambda now_ms: 0.0
        self.capacity_bytes = 1 << 30
        self.memory: dict[int, bytearray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.streams: set[int] = set()
        self.events: dict[int, float | None] = {}
        self.synchronised_ms = -1.0
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.live: weakref.WeakSet[Any] = weakref.WeakSet()
        self.depth = 0
        self.runs = {"plain": 0, "replay": 0}
        self.log: list[str] = []
        self._next = 0x1000

    def clock(self) -> float:
        """The host's time in seconds."""
        return self.host_ms / 1000

    def launch(self) -> None:
        self.host_ms += self.launch_ms

    def work(self, ms: float) -> None:
        """The device is busy that long, once it is free and the host has come so far."""
        begin = max(self.now_ms, self.host_ms)
        self.now_ms = begin + ms * self.drift(begin) + self.others_ms(begin)

    def new_handle(self) -> int:
        self._next += 0x100
        return self._next

    def write(self, address: int, data: bytes) -> None:
        if address not in self.memory or len(data) > len(self.memory[address]):
            raise CudaError("cudaMemcpyAsync: invalid argument (1)")
        self.memory[address][: len(data)] = data

    def left_over(self) -> dict[str, int]:
        """What was not freed, by kind."""
        kinds = {
            "memory": self.memory,
            "pinned": self.pinned,
            "streams": self.streams,
            "events": self.events,
            "graphs": self.graphs,
            "objects": list(self.live),
        }
        return {name: len(things) for name, things in kinds.items() if things}


DEVICE = Device()


def reset() -> Device:
    DEVICE.__init__()
    return DEVICE


class FakeCuda:
    """The backend's verbs on :data:`DEVICE`; each checks that the context is current."""

    name = "fake"

    def __init__(self, *, can_graph: bool = True, integrated: bool = False) -> None:
        self.can_graph = can_graph
        self.integrated = integrated

    @contextmanager
    def current(self) -> Iterator[None]:
        DEVICE.depth += 1
        try:
            yield
        finally:
            left = {} if DEVICE.broken else DEVICE.left_over()  # then nothing can be freed
            assert left == {}, f"not freed before the pop: {left}"
            DEVICE.depth -= 1

    def properties(self) -> DeviceProperties:
        self._check()
        return DeviceProperties(
            name="Fake Orin",
            compute_capability="8.7",
            sm_count=8,
            memory_bytes=DEVICE.capacity_bytes,
            integrated=self.integrated,
            driver_version="12.6",
        )

    def memory_info(self) -> tuple[int, int]:
        self._check()
        return DEVICE.capacity_bytes - sum(map(len, DEVICE.memory.values())), DEVICE.capacity_bytes

    def alloc(self, size_bytes: int) -> int:
        self._check()
        if size_bytes > self.memory_info()[0]:
            raise CudaError("cudaMalloc: out of memory (2)")
        address = DEVICE.new_handle()
        DEVICE.memory[address] = bytearray(size_bytes)
        return address

    def free(self, address: int) -> None:
        self._check()
        for thing in DEVICE.live:
            assert address not in getattr(thing, "addresses", {}).values(), "freed under a context"
        del DEVICE.memory[address]

    def alloc_pinned(self, size_bytes: int) -> np.ndarray:
        self._check()
        memory = np.zeros(size_bytes, np.uint8)
        DEVICE.pinned[memory.ctypes.data] = memory
        return memory

    def free_pinned(self, memory: np.ndarray) -> None:
        self._check()
        del DEVICE.pinned[memory.ctypes.data]

    def to_device(self, address: int, source: np.ndarray, stream: int) -> None:
        self._check(stream)
        assert source.nbytes == len(DEVICE.memory[address]), "a copy of another size"
        self._copy(source.nbytes, lambda: DEVICE.write(address, source.tobytes()))

    def to_host(self, target: np.ndarray, address: int, stream: int) -> None:
        self._check(stream)

        def copy() -> None:
            data = bytes(DEVICE.memory[address][: target.nbytes])
            target[...] = np.frombuffer(data, target.dtype).reshape(target.shape)

        self._copy(target.nbytes, copy)

    def _copy(self, size_bytes: int, copy: Callable[[], None]) -> None:
        def run() -> None:
            DEVICE.work(size_bytes * DEVICE.copy_ms_per_byte)
            copy()

        if DEVICE.capturing is not None:
            DEVICE.capturing.append(run)
        else:
            run()

    def new_stream(self) -> int:
        self._check()
        DEVICE.streams.add(DEVICE.new_handle())
        return max(DEVICE.streams)

    def handle(self, stream: int) -> int:
        return stream

    def synchronize(self, stream: int) -> None:
        self._check(stream)
        assert DEVICE.capturing is None, "a capturing stream cannot be waited for"
        DEVICE.host_ms = max(DEVICE.host_ms, DEVICE.now_ms)
        DEVICE.synchronised_ms = DEVICE.host_ms

    def free_stream(self, stream: int) -> None:
        self._check(stream)
        DEVICE.streams.remove(stream)

    def new_event(self) -> int:
        self._check()
        event = DEVICE.new_handle()
        DEVICE.events[event] = None
        return event

    def record(self, event: int, stream: int) -> None:
        self._check(stream)
        DEVICE.events[event] = max(DEVICE.now_ms, DEVICE.host_ms)

    def elapsed_ms(self, start: int, end: int) -> float:
        self._check()
        times = DEVICE.events[start], DEVICE.events[end]
        if None in times or max(times) > DEVICE.synchronised_ms:
            raise CudaError("cudaEventElapsedTime: device not ready (600)")
        return times[1] - times[0]

    def free_event(self, event: int) -> None:
        self._check()
        del DEVICE.events[event]

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        self._check(stream)
        assert self.can_graph
        DEVICE.capturing = []
        try:
            work()
        except Exception as error:
            raise CudaError(f"nothing was captured: {error}") from error
        else:
            graph = DEVICE.new_handle()
            DEVICE.graphs[graph] = DEVICE.capturing
        finally:
            DEVICE.capturing = None
        return graph

    def replay(self, graph: int, stream: int) -> None:
        self._check(stream)
        DEVICE.runs["replay"] += 1
        DEVICE.launch()
        for step in DEVICE.graphs[graph]:
            step()

    def free_graph(self, graph: int) -> None:
        self._check()
        del DEVICE.graphs[graph]

    def _check(self, stream: int | None = None) -> None:
        assert DEVICE.depth > 0, "no CUDA context is current"
        if DEVICE.broken:
            raise CudaError(DEVICE.broken)
        assert stream is None or stream in DEVICE.streams, "unknown stream"
