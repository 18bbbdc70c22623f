"""The three ways to CUDA: the runtime library itself, cuda-bindings, or pycuda.

None of their packages is loaded before it is wanted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from hwloop.device import jetson
from hwloop.device.cuda import CudaBackend, CudaError
from hwloop.device.cuda_bindings import CudaBindings
from hwloop.device.cuda_library import CudaLibrary
from hwloop.device.cuda_pycuda import PyCuda

CHOICES = ("auto", "pycuda", "cuda-bindings", "cudart")
ON_A_JETSON = (
    "CUDA comes with JetPack and needs nothing of pip: sudo apt install nvidia-cuda; a container "
    "needs --runtime nvidia, and ls -l /dev/nvmap shows the group that may use the GPU"
)
ON_A_CARD = (
    "nvidia-smi must show the GPU, else its driver is missing; then {python} -m pip install "
    '"cuda-bindings<13" where nvidia-smi says CUDA Version 12, cuda-bindings where it says 13'
)


def open_backend(choice: str = "auto", *, graph: bool = True) -> CudaBackend:
    """The first backend that works.

    Args:
        choice: auto, pycuda, cuda-bindings or cudart.
        graph: whether graphs are wanted; pycuda has none, so ``auto`` then tries it last.

    Raises:
        CudaError: none works; the message has the reason of each and what to install.
        ValueError: unknown choice.
    """
    known: dict[str, Callable[[], CudaBackend]] = {
        "cuda-bindings": CudaBindings,
        "cudart": CudaLibrary,
        "pycuda": PyCuda,
    }
    if choice not in CHOICES:
        raise ValueError(f"settings.cuda is {choice!r}, not one of {', '.join(CHOICES)}")
    names = list(known) if graph else list(reversed(known))
    reasons = []
    for name in names if choice == "auto" else [choice]:
        try:
            return known[name]()
        except Exception as error:  # the driver's own exceptions have no common class
            reasons.append(f"{name}: {error}")
    raise CudaError(f"no way to CUDA ({'; '.join(reasons)}); {install_hint()}")


def install_hint(root: Path = jetson.ROOT) -> str:
    """What makes CUDA usable on this machine: a Jetson has other ways than a graphics card."""
    if jetson.snapshot(root) is not None:
        return ON_A_JETSON
    return ON_A_CARD.format(python=sys.executable)
