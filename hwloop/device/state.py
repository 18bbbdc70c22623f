"""The state of the machine that a timing depends on, read without root and without changing it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimd", "asimddp", "i8mm")


def cpu_model() -> str:
    """The CPU's name from /proc/cpuinfo, or the architecture where it has none."""
    for line in _cpuinfo():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()[:120]
    return platform.machine()


def isa() -> str:
    """The instruction sets that decide which kernels a runtime picks, e.g. ``avx2+avx512f``."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            flags = set(line.split(":", 1)[1].split())
            return "+".join(flag for flag in ISA_FLAGS if flag in flags) or "baseline"
    return "baseline"


def governor() -> str:
    """The frequency governor of the first core, or ``unknown`` (virtual machines have none)."""
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown"


def temperature_c() -> float | None:
    """The hottest thermal zone, or None where there is no sensor."""
    readings = [_read(str(path)) for path in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    values = [int(value) / 1000 for value in readings if value and value.lstrip("-").isdigit()]
    return max(values, default=None)


def load_average() -> float:
    """Runnable processes averaged over the last minute."""
    return os.getloadavg()[0]


def usable_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _cpuinfo() -> list[str]:
    return (_read("/proc/cpuinfo") or "").splitlines()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
