"""What ``nvidia-smi`` says about desktop and server GPUs; it is only asked, never told.

Jetsons before Thor answer it with ``[N/A]`` almost everywhere: they have
:mod:`hwloop.device.jetson` instead.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

COMMAND = "nvidia-smi"
TIMEOUT_S = 8.0
"""The first call after boot starts the driver, which takes seconds on big servers."""

TEXTS = {
    "name": "name",
    "uuid": "uuid",
    "driver": "driver_version",
    "pstate": "pstate",
    "compute_mode": "compute_mode",
}
NUMBERS = {
    "index": "index",
    "sm_mhz": "clocks.sm",
    "sm_max_mhz": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "memory_max_mhz": "clocks.max.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "memory_total_mib": "memory.total",
    "memory_used_mib": "memory.used",
    "utilization_pct": "utilization.gpu",
}
# Drivers from 535 on say "event"; older ones know the second name alone. The last query has none.
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active", "")
# Bits of nvmlClocksEventReasons (nvml.h) that slow a GPU down; idle and set clocks do not count.
SLOWDOWNS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat (driver)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
BUS_ORDER = "PCI_BUS_ID"
"""Of CUDA_DEVICE_ORDER: nvidia-smi's own order. Without it CUDA counts from the fastest one."""

WHICH_ONE = (
    "which of these GPUs CUDA takes first is not known: set CUDA_DEVICE_ORDER=PCI_BUS_ID, or "
    "CUDA_VISIBLE_DEVICES to a UUID of nvidia-smi -L"
)
_INDEX = re.compile(r"[0-9]{1,4}")
Ask = Callable[[Sequence[str]], str]


def snapshot(
    ask: Ask | None = None,
    environment: Mapping[str, str] | None = None,
    first_uuid: Callable[[], str | None] | None = None,
) -> dict[str, Any] | None:
    """The GPU that CUDA takes first; None without driver, or where CUDA is shown no GPU.

    Args:
        ask: runs an argument list and returns its output, raising OSError or SubprocessError.
        environment: of the process that uses CUDA, by default this one.
        first_uuid: the UUID of CUDA's first device or None, by default the driver's word. It is
            only asked where the environment does not tell which of several GPUs that is.

    Returns:
        The keys of TEXTS and NUMBERS, ``throttle_reasons`` (None where unknown), ``count`` of the
        machine's GPUs, ``note``: why the GPU's own figures are None although there are GPUs.
    """
    found = query(ask)
    variables = os.environ if environment is None else environment
    first = variables.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    chosen = _by_name(found, first)
    if chosen is None:
        return None
    in_bus_order = variables.get("CUDA_DEVICE_ORDER") == BUS_ORDER
    if len(found) > 1 and not (
        first.startswith("GPU-") or (_INDEX.fullmatch(first) and in_bus_order)
    ):
        chosen = _by_uuid(found, first_uuid)
    return {**chosen, "count": len(found), "note": chosen.get("note")}


def _by_name(found: list[dict[str, Any]], first: str) -> dict[str, Any] | None:
    """The GPU that an entry of ``CUDA_VISIBLE_DEVICES`` means, counted in the bus's order.

    CUDA sees none for an entry that names none, and for an empty one.
    """
    if _INDEX.fullmatch(first):
        return found[int(first)] if int(first) < len(found) else None
    if first.startswith("GPU-"):  # so much of it as tells it from the others
        return next((gpu for gpu in found if (gpu["uuid"] or "").startswith(first)), None)
    return found[0] if found and first.startswith("MIG-") else None


def _by_uuid(
    found: list[dict[str, Any]], first_uuid: Callable[[], str | None] | None
) -> dict[str, Any]:
    """The GPU that CUDA itself names; where it names none, nothing is said of any."""
    from hwloop.device.cuda_library import device_uuid

    uuid = (first_uuid or device_uuid)()
    for gpu in found:
        if uuid is not None and gpu["uuid"] == uuid:
            return gpu
    unknown = dict.fromkeys([*TEXTS, *NUMBERS, "throttle_reasons"])
    return {**unknown, "driver": found[0]["driver"], "note": WHICH_ONE}


def query(ask: Ask | None = None) -> list[dict[str, Any]]:
    """Every GPU of this machine; empty where ``nvidia-smi`` is absent, fails or hangs."""
    for reasons in REASONS:
        names = [*TEXTS.values(), *NUMBERS.values(), *([reasons] if reasons else [])]
        command = [COMMAND, f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
        try:
            return parse((ask or _run)(command), reasons=bool(reasons))
        except subprocess.CalledProcessError:
            continue  # an unknown field fails the whole query
        except (OSError, subprocess.SubprocessError):
            return []
    return []


def parse(text: str, *, reasons: bool) -> list[dict[str, Any]]:
    """One record per line of :func:`query`'s CSV; ``[N/A]`` and its relatives become None."""
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(TEXTS) + len(NUMBERS) + int(reasons):
            continue
        texts = {key: _text(cell) for key, cell in zip(TEXTS, row)}  # noqa: B905
        rest = row[len(TEXTS) :]
        numbers = {key: _number(cell) for key, cell in zip(NUMBERS, rest)}  # noqa: B905
        bits = _bits(row[-1]) if reasons else None
        slowed = None
        if bits is not None:
            slowed = [name for bit, name in SLOWDOWNS.items() if bits & bit]
        found.append({**texts, **numbers, "throttle_reasons": slowed})
    return found


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        list(command), capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    return done.stdout


def _text(cell: str) -> str | None:
    cell = cell.strip()
    return None if not cell or cell.startswith("[") or cell == "N/A" else cell


def _number(cell: str) -> int | float | None:
    cell = cell.strip()
    if not re.fullmatch(r"-?\d+(\.\d+)?", cell):
        return None
    return float(cell) if "." in cell else int(cell)


def _bits(cell: str) -> int | None:
    cell = cell.strip()
    return int(cell, 16) if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", cell) else None
