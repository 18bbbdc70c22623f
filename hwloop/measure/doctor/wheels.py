"""Which TensorRT fits a machine: the driver decides about the wheel, and a Jetson wants none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwloop.measure.doctor import said
from hwloop.measure.doctor.check import numbers

EXTRAS = {12: "tensorrt-cu12", 13: "tensorrt"}
"""CUDA of the wheels, and hwloop's extra that brings them (pyproject.toml)."""

WHEELS = {12: "tensorrt-cu12", 13: "tensorrt-cu13"}
BOUNDS = ">=10.13,<12"
OLDEST_DRIVERS = {13: 580, 12: 525}
"""CUDA, and the oldest branch of NVIDIA's driver that runs it (CUDA's release notes)."""

SYSTEM_PYTHON = "/usr/bin/python3"
OLD_DRIVER = f"update NVIDIA's driver: {OLDEST_DRIVERS[12]} or newer"
UPDATE_JETPACK = "update to JetPack 6.1 or newer (sdkmanager, or NVIDIA's guide to apt upgrades)"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a piece of advice must fit.

    Attributes:
        jetson: TensorRT and CUDA come with JetPack; None: nobody knows.
        cuda: the newest CUDA (major version) that the driver runs, or None.
        x86: NVIDIA's wheels are for these machines.
        remote: hwloop is not installed there; ``python`` is the interpreter that is used.
    """

    jetson: bool | None = False
    cuda: int | None = None
    x86: bool = True
    remote: bool = False
    python: str = "python"


def machine_of(board: Mapping[str, Any] | None) -> Machine:
    """What a worker's state tells of its machine; nothing without one."""
    if board is None:
        return Machine(jetson=None)
    return Machine(
        jetson=said.at(board, "jetson") is not None,
        cuda=cuda_of_driver(said.text(board, "gpu.driver")),
        x86=said.text(board, "machine") in ("x86_64", None),
    )


def cuda_of_driver(driver: str | None) -> int | None:
    """The newest CUDA (13, 12, or 11 for anything older) that this release of the driver runs."""
    branch = numbers(driver or "")[:1]
    if not branch:
        return None
    return next((cuda for cuda, oldest in OLDEST_DRIVERS.items() if branch[0] >= oldest), 11)


def get_tensorrt(machine: Machine) -> str:
    """How this machine gets a TensorRT that it can run."""
    there = "on the board: " if machine.remote else ""
    if machine.jetson or (machine.jetson is None and machine.remote):
        only = f'   (for the system\'s Python alone: python = "{SYSTEM_PYTHON}" in the profile)'
        return f"{there}sudo apt install python3-libnvinfer{only if machine.remote else ''}"
    there = "there: " if machine.remote else ""
    if not machine.x86:
        return f"{there}sudo apt install python3-libnvinfer   (from NVIDIA's apt repository)"
    if machine.cuda is not None and machine.cuda < min(WHEELS):
        return f"{there}{OLD_DRIVER}"
    cuda = min(machine.cuda or max(WHEELS), max(WHEELS))
    name = f"{WHEELS[cuda]}{BOUNDS}" if machine.remote else f"hwloop[{EXTRAS[cuda]}]"
    unsure = "" if machine.cuda else f"   (with a driver below 580: hwloop[{EXTRAS[12]}])"
    return f'{there}{machine.python} -m pip install "{name}"{unsure}'


def newer_tensorrt(machine: Machine) -> str:
    """How this machine gets a newer one than it has."""
    return UPDATE_JETPACK if machine.jetson else get_tensorrt(machine)


def get_cuda(machine: Machine) -> str:
    """How a program of Python gets at CUDA's memory and streams."""
    there = "there: " if machine.remote else ""
    if machine.jetson or (machine.jetson is None and machine.remote):
        return f"{there}sudo apt install nvidia-cuda   (JetPack's CUDA)"
    if machine.cuda is not None and machine.cuda < min(WHEELS):
        return f"{there}{OLD_DRIVER}"
    name = '"cuda-bindings<13"' if machine.cuda == min(WHEELS) else "cuda-bindings"
    unsure = "" if machine.cuda else '   (with CUDA 12: "cuda-bindings<13")'
    return f"{there}{machine.python} -m pip install {name}{unsure}"


def older_cuda(machine: Machine) -> str:
    """What to do where a package is for a newer CUDA than the driver runs (CUDA's error 35)."""
    there = "there: " if machine.remote else ""
    if machine.jetson or (machine.jetson is None and machine.remote):
        return (
            f"{there}{machine.python} -m pip uninstall cuda-bindings   (JetPack has its own CUDA)"
        )
    return f"{get_tensorrt(machine)}   or: {OLD_DRIVER}"
