"""TensorRT's Python module on this machine, or what helps where there is none that can be used."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from hwloop.device import jetson

OLDEST = (10, 3)
ON_A_JETSON = (
    "JetPack's TensorRT belongs to the system's Python (/usr/bin/python3, or a venv made with "
    "--system-site-packages): sudo apt install python3-libnvinfer"
)
ON_A_CARD = (
    'python3 -m pip install "tensorrt-cu12>=10.13,<12" where nvidia-smi says CUDA Version 12, '
    '"tensorrt-cu13>=10.13,<12" where it says 13'
)


class NoTensorRT(Exception):
    """TensorRT cannot be used here; the message says what to do."""


def import_tensorrt(root: Path = jetson.ROOT) -> Any:
    """The module. Raises NoTensorRT with what helps on this machine."""
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise NoTensorRT(f"TensorRT cannot be imported: {error}; {_remedy(root)}") from error


def check_version(version: str, root: Path = jetson.ROOT) -> None:
    """Raises NoTensorRT for a release without what is used here."""
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if parts < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        newer = ON_A_CARD if jetson.snapshot(root) is None else "update to JetPack 6.1 or newer"
        raise NoTensorRT(f"TensorRT {version} is too old, {oldest} is the oldest; {newer}")


def _remedy(root: Path) -> str:
    return ON_A_CARD if jetson.snapshot(root) is None else ON_A_JETSON
