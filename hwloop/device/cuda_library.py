"""CUDA by the runtime library that every JetPack and every CUDA has: nothing to install on a board.

``libcudart`` of CUDA 12 or newer, called through ctypes; it captures and replays graphs as
cuda-bindings does. Signatures: NVIDIA, "CUDA Runtime API", sections 6.1 to 6.30.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hwloop.device.cuda import CudaError, DeviceProperties, version_text
from hwloop.device.cuda_bindings import CudaBindings

OLDEST = 12000
PLACES = (
    "usr/local/cuda/lib64/libcudart.so*",
    "usr/local/cuda-*/lib64/libcudart.so*",
    "usr/local/cuda*/targets/*/lib/libcudart.so*",
    "usr/lib/*-linux-gnu/libcudart.so*",
)
WHEELS = ("nvidia/*/lib/libcudart.so*",)
NO_LIBRARY = "there is no libcudart; JetPack and CUDA have it below /usr/local/cuda"
NAME_BYTES = 256

_int, _size, _float = ctypes.c_int, ctypes.c_size_t, ctypes.c_float
_handle, _flags64 = ctypes.c_void_p, ctypes.c_ulonglong
_ATTRIBUTES = {"sm_count": 16, "integrated": 18, "major": 75, "minor": 76}  # cudaDeviceAttr


class _Out:
    """A parameter that the call writes to."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudaSetDevice": (_int,),
    "cudaDriverGetVersion": (_Out(_int),),
    "cudaRuntimeGetVersion": (_Out(_int),),
    "cudaDeviceGetAttribute": (_Out(_int), _int, _int),
    "cudaMemGetInfo": (_Out(_size), _Out(_size)),
    "cudaMalloc": (_Out(_handle), _size),
    "cudaFree": (_handle,),
    "cudaMallocHost": (_Out(_handle), _size),
    "cudaFreeHost": (_handle,),
    "cudaMemcpyAsync": (_handle, _handle, _size, _int, _handle),
    "cudaStreamCreateWithFlags": (_Out(_handle), _int),
    "cudaStreamSynchronize": (_handle,),
    "cudaStreamDestroy": (_handle,),
    "cudaEventCreate": (_Out(_handle),),
    "cudaEventRecord": (_handle, _handle),
    "cudaEventElapsedTime": (_Out(_float), _handle, _handle),
    "cudaEventDestroy": (_handle,),
    "cudaStreamBeginCapture": (_handle, _int),
    "cudaStreamEndCapture": (_handle, _Out(_handle)),
    "cudaGraphInstantiate": (_Out(_handle), _handle, _flags64),
    "cudaGraphLaunch": (_handle, _handle),
    "cudaGraphDestroy": (_handle,),
    "cudaGraphExecDestroy": (_handle,),
    "cudaGetLastError": (),
}


class Cudart:
    """The library with the calls and the returns of ``cuda.bindings.runtime``: (error, values...).

    Raises:
        OSError: the file cannot be loaded.
        AttributeError: it lacks a call, so it is no CUDA runtime of 12 or newer.
    """

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        for name, parameters in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype = _int
            function.argtypes = [
                ctypes.POINTER(item.kind) if isinstance(item, _Out) else item for item in parameters
            ]
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        self._library.cudaGetErrorString.argtypes = [_int]

    def __getattr__(self, name: str) -> Any:
        if name not in _SIGNATURES:
            raise AttributeError(name)

        def call(*given: Any) -> tuple[Any, ...]:
            values, outputs, arguments = iter(given), [], []
            for item in _SIGNATURES[name]:
                if isinstance(item, _Out):
                    outputs.append(item.kind())
                    arguments.append(ctypes.byref(outputs[-1]))
                else:
                    arguments.append(next(values))
            error = getattr(self._library, name)(*arguments)
            return (error, *(output.value or 0 for output in outputs))

        return call

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, self._library.cudaGetErrorString(error) or b"unknown"


class CudaLibrary(CudaBindings):
    """The runtime library itself; it works as cuda-bindings does, which wraps the same calls."""

    name = "cudart"

    def __init__(self, path: str | None = None) -> None:
        """The newest library that opens the device: one may be too new for the driver.

        Args:
            path: this library and no other.

        Raises:
            CudaError: none does; the message has the reason of each.
        """
        refused: dict[str, list[str]] = {}
        for place in [path] if path else candidates():
            try:
                self._open(place)
            except (OSError, AttributeError, CudaError) as error:
                refused.setdefault(str(error), []).append(place)
            else:
                return
        reasons = [f"{', '.join(places)}: {reason}" for reason, places in refused.items()]
        raise CudaError("; ".join(reasons) or NO_LIBRARY)

    def _open(self, path: str) -> None:
        self._rt = Cudart(path)
        version = self._call("cudaRuntimeGetVersion")
        if version < OLDEST:
            raise CudaError(f"CUDA {version_text(version)} is too old: 12.0 is needed")
        self._call("cudaSetDevice", 0)

    def properties(self) -> DeviceProperties:
        # The struct of cudaGetDeviceProperties differs by version; attributes do not.
        found = {
            key: self._call("cudaDeviceGetAttribute", attribute, 0)
            for key, attribute in _ATTRIBUTES.items()
        }
        return DeviceProperties(
            name=_device_name(),
            compute_capability=f"{found['major']}.{found['minor']}",
            sm_count=found["sm_count"],
            memory_bytes=self.memory_info()[1],
            integrated=bool(found["integrated"]),
            driver_version=version_text(self._call("cudaDriverGetVersion")),
        )


def find(root: Path = Path("/")) -> str:
    """The newest libcudart; whether it opens the device is not known before it is loaded.

    Raises:
        CudaError: there is none.
    """
    found = candidates(root)
    if not found:
        raise CudaError(NO_LIBRARY)
    return found[0]


def candidates(root: Path = Path("/")) -> list[str]:
    """Every libcudart, the newest first: the system's, those in CUDA's and JetPack's own folders,
    those of pip's wheels for this Python. What is the same file by several names comes once.
    """
    known = ctypes.util.find_library("cudart") if root == Path("/") else None
    paths = [path for place in PLACES for path in sorted(root.glob(place))]
    for folder in sys.path:
        paths += [path for place in WHEELS for path in sorted(Path(folder or ".").glob(place))]
    files = {os.path.realpath(path): str(path) for path in reversed(paths)}
    found = [*([known] if known else []), *reversed(files.values())]
    return sorted(found, key=_version, reverse=True)


def device_uuid() -> str | None:
    """CUDA's first device by the name that ``nvidia-smi`` has for it; None where CUDA is silent."""
    raw = (ctypes.c_ubyte * 16)()
    try:
        driver, device = _driver()
        if driver.cuDeviceGetUuid(raw, device) != 0:
            return None
    except (OSError, AttributeError, CudaError):
        return None
    return f"GPU-{uuid.UUID(bytes=bytes(raw))}"


def _version(path: str) -> tuple[int, ...]:
    """By number, not as text: (12, 10) is newer than (12, 9)."""
    name = os.path.basename(os.path.realpath(path) if os.path.exists(path) else path)
    return tuple(int(part) for part in re.findall(r"\d+", name.partition(".so")[2]))


def _device_name() -> str:
    """The driver's name of the device; the runtime has it only in its struct."""
    driver, device = _driver()
    text = ctypes.create_string_buffer(NAME_BYTES)
    if driver.cuDeviceGetName(text, NAME_BYTES, device) != 0:
        raise CudaError("the driver does not tell the device's name")
    return text.value.decode(errors="replace")


def _driver() -> tuple[Any, ctypes.c_int]:
    """The driver's library and its first device, which is the runtime's first one too."""
    driver, device = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        raise CudaError("the driver has no device")
    return driver, device
