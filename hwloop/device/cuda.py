"""CUDA through one small door: memory, streams, events and graphs; ``cuda_backends`` opens it.

Every backend uses the device's primary context, which TensorRT shares; ``pycuda.autoinit`` would
make a second one, in which TensorRT's objects are invalid.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

NON_BLOCKING = 1
"""The flag of a stream that does not wait for the default one."""

if TYPE_CHECKING:  # numpy 1.21, which JetPack 6 has, cannot subscript its types
    Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class CudaError(Exception):
    """A call of CUDA failed; the message names the call and CUDA's reason."""


@dataclass(frozen=True, kw_only=True)
class DeviceProperties:
    """The GPU as CUDA shows it now.

    Attributes:
        sm_count: multiprocessors that are visible; a Jetson's power mode hides some.
        integrated: whether it shares its memory with the CPU.
        driver_version: the newest CUDA that the driver can run, e.g. ``12.6``. Several drivers have
            the same; the driver's own number is nvidia-smi's, or the L4T release of a Jetson.
    """

    name: str
    compute_capability: str
    sm_count: int
    memory_bytes: int
    integrated: bool
    driver_version: str


class CudaBackend(Protocol):
    """The first visible device. Streams, events and graphs are opaque; addresses are integers.

    Everything but ``properties`` is called inside ``current()``, and freed before it ends.
    """

    name: str
    can_graph: bool

    def current(self) -> AbstractContextManager[None]:
        """Make the device's primary context current in this thread."""
        ...

    def properties(self) -> DeviceProperties: ...

    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes on the device; on a Jetson, page cache counts as used."""
        ...

    def alloc(self, size_bytes: int) -> int: ...

    def free(self, address: int) -> None: ...

    def alloc_pinned(self, size_bytes: int) -> Bytes:
        """Page-locked host memory, which alone is copied asynchronously."""
        ...

    def free_pinned(self, memory: Bytes) -> None: ...

    def to_device(self, address: int, source: np.ndarray[Any, Any], stream: Any) -> None: ...

    def to_host(self, target: np.ndarray[Any, Any], address: int, stream: Any) -> None: ...

    def new_stream(self) -> Any: ...

    def handle(self, stream: Any) -> int: ...

    def synchronize(self, stream: Any) -> None: ...

    def free_stream(self, stream: Any) -> None: ...

    def new_event(self) -> Any: ...

    def record(self, event: Any, stream: Any) -> None: ...

    def elapsed_ms(self, start: Any, end: Any) -> float: ...

    def free_event(self, event: Any) -> None: ...

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """A graph of what ``work`` enqueues on ``stream``. Raises CudaError if it cannot be."""
        ...

    def replay(self, graph: Any, stream: Any) -> None: ...

    def free_graph(self, graph: Any) -> None: ...


def version_text(number: Any) -> str:
    """CUDA writes 12.6 as 12060."""
    return f"{int(number) // 1000}.{int(number) % 1000 // 10}"
