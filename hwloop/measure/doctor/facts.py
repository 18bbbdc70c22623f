"""What there is on this machine. No framework is imported to find out."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hwloop.device import jetson

NEEDED = {
    "torch": "2.10",
    "torchvision": "0.25",
    "torch-pruning": "1.6",
    "onnx": "1.21",
    "safetensors": "0.4",
    "gymnasium": "1.0",
    "execnet": "2.1",
    "numpy": "1.26",
    "click": "8.2",
    **({"tomli": "2"} if sys.version_info < (3, 11) else {}),
}
"""Distributions and the oldest version of each, as pyproject.toml has them."""

ORT_KINDS = ("onnxruntime", "onnxruntime-gpu")
TENSORRT_KINDS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt_lean")
CUDA_KINDS = {"cuda-bindings": "cuda.bindings", "pycuda": "pycuda"}
DRIVER = "libcuda.so.1"
OPTIONAL = (*ORT_KINDS, "openvino", *TENSORRT_KINDS, *CUDA_KINDS)


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What there is on this machine.

    Attributes:
        versions: installed distributions by name.
        tensorrt_place: the folder that TensorRT is imported from, or None.
        cuda_backends: ways to CUDA that can be found: packages, or the runtime library (cudart).
        cuda_driver: the newest CUDA that the driver runs, (12, 4), or None without a driver.
        jetson: whether this machine is one itself.
        machine: the processor's architecture, x86_64 or aarch64.
        hidden_tensorrt: a TensorRT of the system that this interpreter does not see, or None.
        environment: the folder of this interpreter's environment.
        file_system: kind of file system below the working folder, or None.
        free_bytes: room in the working folder, or None.
    """

    python: tuple[int, ...]
    versions: Mapping[str, str]
    tensorrt_place: str | None
    cuda_backends: tuple[str, ...]
    cuda_driver: tuple[int, int] | None
    jetson: bool
    machine: str
    hidden_tensorrt: str | None
    environment: str
    ssh: bool
    file_system: str | None
    free_bytes: int | None
    load_average: float
    cores: int


def host_facts(root: Path = Path("/"), environment: Path | None = None) -> HostFacts:
    """Look around on this machine; ``root`` and ``environment`` are others in tests."""
    home = Path(sys.prefix) if environment is None else environment
    versions = {name: _version(name) for name in (*NEEDED, *OPTIONAL)}
    found = {name: version for name, version in versions.items() if version}
    place = _place("tensorrt")
    try:
        free_bytes: int | None = shutil.disk_usage(".").free
    except OSError:
        free_bytes = None
    return HostFacts(
        python=tuple(sys.version_info[:3]),
        versions=found,
        tensorrt_place=place,
        cuda_backends=_cuda_backends(root),
        cuda_driver=cuda_driver(),
        jetson=jetson.snapshot(root) is not None,
        machine=platform.machine(),
        hidden_tensorrt=None if place else hidden_tensorrt(root, home),
        environment=str(home),
        ssh=shutil.which("ssh") is not None,
        file_system=_file_system(root, Path.cwd()),
        free_bytes=free_bytes,
        load_average=os.getloadavg()[0],
        cores=len(os.sched_getaffinity(0)),
    )


def hidden_tensorrt(root: Path, environment: Path) -> str | None:
    """apt's TensorRT, where this interpreter's environment keeps the system's packages out.

    On a Jetson, TensorRT comes with JetPack for the system's Python alone.
    """
    places = sorted(root.glob("usr/lib/python3*/dist-packages/tensorrt"))
    if not places or environment == root / "usr":
        return None
    try:
        settings = (environment / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return str(places[-1])  # conda or pyenv: not the system's Python at all
    shared = re.search(r"^include-system-site-packages\s*=\s*true\s*$", settings, re.M | re.I)
    system = re.search(rf"^home\s*=\s*{re.escape(str(root / 'usr/bin'))}\s*$", settings, re.M)
    return None if shared and system else str(places[-1])


def cuda_driver(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[int, int] | None:
    """(major, minor) of the newest CUDA that the driver of this machine runs; None without one.

    Args:
        load: opens a library by its name, raising OSError.
    """
    version = ctypes.c_int(0)
    try:
        status = load(DRIVER).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    if status != 0 or version.value <= 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _place(module: str) -> str | None:
    """Where a module would be imported from, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return None if spec is None or not spec.origin else str(Path(spec.origin).parent)


def _cuda_backends(root: Path) -> tuple[str, ...]:
    packages = [name for name, module in CUDA_KINDS.items() if _place(module)]
    try:
        from hwloop.device import cuda_library
        from hwloop.device.cuda import CudaError
    except ImportError:  # numpy, which its arrays are of
        return tuple(packages)
    try:
        cuda_library.find(root)
    except CudaError:
        return tuple(packages)
    return (*packages, cuda_library.CudaLibrary.name)


def _file_system(root: Path, folder: Path) -> str | None:
    """The kind of the longest mount point above ``folder``."""
    try:
        lines = (root / "proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    mounts = [fields for fields in map(str.split, lines) if len(fields) > 2]
    above = [(fields[1], fields[2]) for fields in mounts if folder.is_relative_to(fields[1])]
    return max(above, key=lambda mount: len(mount[0]))[1] if above else None
