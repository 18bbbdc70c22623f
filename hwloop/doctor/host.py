"""What is missing or wrong on this machine. No framework is imported to find out."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hwloop.device import cuda_library
from hwloop.device.cuda import CudaError
from hwloop.doctor.check import (
    FAIL,
    OK,
    OLDEST_PYTHON,
    OLDEST_TENSORRT,
    WARN,
    Check,
    dotted,
    load,
    numbers,
    room,
    tensorrt_problem,
)
from hwloop.profile import TargetProfile, document

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
}
"""Distributions and the oldest version of each, as pyproject.toml has them."""

ORT_KINDS = ("onnxruntime", "onnxruntime-gpu")
TENSORRT_KINDS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt_lean")
CUDA_KINDS = {"cuda-bindings": "cuda.bindings", "pycuda": "pycuda"}
NETWORK_DISKS = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p")


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What there is on this machine.

    Attributes:
        versions: installed distributions by name.
        tensorrt_place: the folder that TensorRT is imported from, or None.
        cuda_backends: ways to CUDA that can be found: packages, or the runtime library (cudart).
        hidden_tensorrt: a TensorRT of the system that this interpreter does not see, or None.
        environment: the folder of this interpreter's environment.
        file_system: kind of file system below the working folder, or None.
        free_bytes: room in the working folder, or None.
    """

    python: tuple[int, ...]
    versions: Mapping[str, str]
    tensorrt_place: str | None
    cuda_backends: tuple[str, ...]
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
    versions = {name: _version(name) for name in (*NEEDED, *ORT_KINDS, *TENSORRT_KINDS)}
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


def host_checks(profile: TargetProfile | None, facts: HostFacts | None = None) -> list[Check]:
    """The lines about this machine; ``facts`` are gathered where none are given."""
    facts = host_facts() if facts is None else facts
    here = profile is not None and profile.transport == "local"
    trt_here = profile is not None and profile.runtime == "tensorrt" and here
    checks = [_python(facts), *_packages(facts), _onnxruntime(facts)]
    if trt_here or facts.tensorrt_place:
        checks.append(_tensorrt(facts, needed=trt_here))
    if trt_here or facts.cuda_backends:
        checks.append(_cuda(facts, needed=trt_here))
    checks.append(_ssh(facts, needed=profile is not None and profile.transport == "ssh"))
    checks += room(facts.free_bytes, "the working folder")
    if facts.file_system in NETWORK_DISKS:
        what = f"the working folder is on a network disk ({facts.file_system}): locks may fail"
        checks.append(Check(state=WARN, what=what, fix="--run and --table on a local disk"))
    checks.append(load(facts.load_average, facts.cores))
    if profile is not None and not profile.verified:
        checks.append(_unverified(profile))
    return checks


def _python(facts: HostFacts) -> Check:
    text = f"Python {dotted(facts.python)}"
    if facts.python < OLDEST_PYTHON:
        return Check(state=FAIL, what=f"{text}: 3.10 or newer is needed", fix="install a newer one")
    return Check(state=OK, what=text)


def _packages(facts: HostFacts) -> list[Check]:
    checks = []
    for name, oldest in NEEDED.items():
        version = facts.versions.get(name)
        if version is None:
            what, state = f"{name} is not installed", FAIL
        elif numbers(version) < numbers(oldest):
            what, state = f"{name} {version}: {oldest} or newer is needed", FAIL
        else:
            what, state = f"{name} {version}", OK
        fix = None if state == OK else f'python -m pip install "{name}>={oldest}"'
        checks.append(Check(state=state, what=what, fix=fix))
    return checks


def _onnxruntime(facts: HostFacts) -> Check:
    found = [name for name in ORT_KINDS if name in facts.versions]
    if not found:
        what = "ONNX Runtime is not installed: every exported file is checked with it"
        return Check(state=FAIL, what=what, fix='python -m pip install "hwloop[cpu]"')
    text = " and ".join(f"{name} {facts.versions[name]}" for name in found)
    if len(found) > 1:  # they own the same folder: the last one installed wins, in parts
        remove = f"python -m pip uninstall -y {' '.join(found)}"
        fix = f"{remove}   then: python -m pip install onnxruntime   (or onnxruntime-gpu)"
        return Check(state=FAIL, what=f"{text} overwrite each other's files", fix=fix)
    return Check(state=OK, what=text)


def _tensorrt(facts: HostFacts, *, needed: bool) -> Check:
    if facts.tensorrt_place is None and facts.hidden_tensorrt:
        what = f"{facts.environment} does not see the system's TensorRT ({facts.hidden_tensorrt})"
        fix = "/usr/bin/python3 -m venv --system-site-packages NEW   and install hwloop there"
        return Check(state=FAIL, what=what, fix=fix)
    if facts.tensorrt_place is None:
        fix = 'python -m pip install "hwloop[tensorrt]"   (on a Jetson: sudo apt install tensorrt)'
        return Check(state=FAIL, what="TensorRT is not installed", fix=fix)
    version = next((facts.versions[n] for n in TENSORRT_KINDS if n in facts.versions), None)
    origin = "apt" if "/dist-packages" in facts.tensorrt_place else "pip"
    text = f"TensorRT {version or 'of unknown version'}, from {origin} ({facts.tensorrt_place})"
    problem = None if version is None else tensorrt_problem(version)
    if problem is None:
        return Check(state=OK, what=text)
    too_old = numbers(version or "") < OLDEST_TENSORRT
    remedy = 'python -m pip install "tensorrt-cu13>=10.13,<12"'
    return Check(
        state=FAIL if too_old and needed else WARN,
        what=f"{text}: {problem}",
        fix=remedy if origin == "pip" else "update JetPack, or NVIDIA's apt packages",
    )


def _cuda(facts: HostFacts, *, needed: bool) -> Check:
    if facts.cuda_backends:
        return Check(state=OK, what=f"CUDA through {' or '.join(facts.cuda_backends)}")
    fix = 'python -m pip install cuda-bindings   (with CUDA 12: "cuda-bindings<13")'
    what = "no way to CUDA's memory and streams (libcudart, cuda-bindings or pycuda)"
    return Check(state=FAIL if needed else WARN, what=what, fix=fix)


def _ssh(facts: HostFacts, *, needed: bool) -> Check:
    if facts.ssh:
        return Check(state=OK, what="ssh is there")
    what = "no ssh, which reaches boards"
    state = FAIL if needed else WARN
    return Check(state=state, what=what, fix="sudo apt install openssh-client")


def _unverified(profile: TargetProfile) -> Check:
    if profile.simulated:
        what = f"target {profile.name!r} computes latencies: nothing of it is measured"
        return Check(state=OK, what=what)
    what = f"the project has not run target {profile.name!r} on real hardware yet"
    fix = f"{document('docs/on-hardware.md')} says what to look at and to send"
    return Check(state=WARN, what=what, fix=fix)


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
