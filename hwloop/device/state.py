"""The state of the machine that a timing depends on, read without root and without changing it.

``root`` is the file system's root, another one in tests. What cannot be read is None.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

from hwloop.device import jetson, nvidia_smi, power
from hwloop.device.jetson import ROOT, read_text

ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimd", "asimddp", "i8mm")
UNKNOWN = "unknown"
NVIDIA_MODULE = "proc/driver/nvidia/version"


def snapshot(root: Path = ROOT) -> dict[str, Any]:
    """Everything that a timing depends on, as it is now, as plain JSON values.

    Returns:
        cpu, isa, machine, governor, temperature_c, load_average, cores; memory and disk (bytes);
        jetson: :func:`jetson.snapshot` with rails_mw, or None; gpu: :func:`nvidia_smi.snapshot`
        where the machine is no Jetson, or None.
    """
    board = jetson.snapshot(root)
    if board is not None:
        board["rails_mw"] = power.rails_mw(root) or power.tegrastats(root).get("rails_mw", {})
    return {
        "cpu": cpu_model(root),
        "isa": isa(root),
        "machine": platform.machine(),
        "governor": governor(root),
        "temperature_c": temperature_c(root),
        "load_average": load_average(),
        "cores": len(usable_cores()),
        "memory": memory(root),
        "disk": disk(root),
        "jetson": board,
        "gpu": nvidia_smi.snapshot() if board is None else None,
    }


def fingerprint_settings(root: Path = ROOT) -> list[list[str]]:
    """What separates the figures of two Jetsons, or of one in two power modes; of a graphics card
    the driver's own version; else nothing.

    The mode is given by name, because its number is another mode on another module. What cannot
    be read is ``unknown``: such a board is told apart from one that can.
    """
    board = jetson.snapshot(root)
    if board is None:
        driver = driver_version(root)
        return [] if driver is None else [["driver", driver]]
    values = {
        "module": board["module"] or board["part"] or board["model"],
        "l4t": board["l4t"],
        "power_mode": board["power_mode"],
        "gpu_max_mhz": board["gpu"]["max_mhz"],
        "emc_max_mhz": board["emc"]["max_mhz"],
    }
    return [[key, UNKNOWN if value is None else str(value)] for key, value in values.items()]


def driver_version(root: Path = ROOT) -> str | None:
    """Of NVIDIA's kernel module, e.g. ``560.35.03``; None where none is loaded."""
    found = re.search(r"\b\d{3,4}\.\d+(\.\d+)?\b", read_text(root / NVIDIA_MODULE) or "")
    return found.group() if found else None


def cpu_model(root: Path = ROOT) -> str:
    """The CPU's name from /proc/cpuinfo, or the architecture where it has none."""
    for line in _cpuinfo(root):
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()[:120]
    return platform.machine()


def isa(root: Path = ROOT) -> str:
    """The instruction sets that decide which kernels a runtime picks, e.g. ``avx2+avx512f``."""
    for line in _cpuinfo(root):
        if line.startswith(("flags", "Features")):
            flags = set(line.partition(":")[2].split())
            return "+".join(flag for flag in ISA_FLAGS if flag in flags) or "baseline"
    return "baseline"


def governor(root: Path = ROOT) -> str:
    """The frequency governor of the first core, or ``unknown`` (virtual machines have none)."""
    path = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    return read_text(path) or UNKNOWN


def temperature_c(root: Path = ROOT) -> float | None:
    """The hottest thermal zone, or None where there is no sensor."""
    return max(jetson.temperatures_c(root).values(), default=None)


def load_average() -> float:
    """Runnable processes averaged over the last minute."""
    return os.getloadavg()[0]


def cache_bytes(root: Path = ROOT) -> int | None:
    """Of the second-level cache of the first core, or None where the system does not say."""
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size = re.fullmatch(r"(\d+)K", read_text(index / "size") or "")
        if size and read_text(index / "level") == "2":
            return int(size[1]) * 1024
    return None


def usable_cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def memory(root: Path = ROOT) -> dict[str, int | None]:
    """total, available, swap_total, swap_free and zram (swap in compressed memory), in bytes.

    ``available`` is what a Jetson's GPU can have too: they share it, and CUDA's own figure counts
    the page cache as used.
    """
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    found = {key: int(value) * 1024 for key, value in lines}
    zram = re.findall(r"^/dev/zram\S*\s+\S+\s+(\d+)", _swaps(root), re.MULTILINE)
    return {
        "total_bytes": found.get("MemTotal"),
        "available_bytes": found.get("MemAvailable"),
        "swap_total_bytes": found.get("SwapTotal"),
        "swap_free_bytes": found.get("SwapFree"),
        "zram_bytes": sum(int(size) for size in zram) * 1024,
    }


def disk(root: Path = ROOT) -> dict[str, Any] | None:
    """path, total_bytes, free_bytes of the disk that holds the user's cache folder."""
    folder = Path(os.path.expanduser("~")) if root == ROOT else root
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return {"path": str(folder), "total_bytes": usage.total, "free_bytes": usage.free}


def _swaps(root: Path) -> str:
    return read_text(root / "proc/swaps") or ""


def _cpuinfo(root: Path) -> list[str]:
    return (read_text(root / "proc/cpuinfo") or "").splitlines()
