"""What the builder may use of the machine's memory.

Kernels that need more than their limit are out, so two builds that are compared need the same one:
the limits are found once, and the host hands them on to every later worker of its session.
"""

from __future__ import annotations

from typing import Any

from hwloop.device import state

MAX_WORKSPACE_MIB = 1024
WORKSPACE_SHARE = 0.125
TACTIC_DRAM_SHARE = 0.75
DRAM_STEP_MIB = 512


def limits(settings: dict[str, Any], *, memory_mib: int, integrated: bool) -> dict[str, int]:
    """``workspace_mib``, and ``tactic_dram_mib`` where the GPU shares the CPU's memory.

    The first is part of every key, so it follows from what the device has, not from what is free
    today. The second guards against running out of memory, so it follows from that. What the
    settings have is kept.

    Args:
        memory_mib: all memory of the GPU; a Jetson's is the machine's.
    """
    found = {"workspace_mib": default_workspace_mib(memory_mib)}
    # In steps, so that small changes of what is free do not change which tactics fit.
    tactic_mib = int(available_memory_mib() * TACTIC_DRAM_SHARE) // DRAM_STEP_MIB * DRAM_STEP_MIB
    if integrated and tactic_mib:
        found["tactic_dram_mib"] = tactic_mib
    if integrated and "tactic_dram_mib" in settings:
        found["tactic_dram_mib"] = int(settings["tactic_dram_mib"])
    if "workspace_mib" in settings:
        found["workspace_mib"] = int(settings["workspace_mib"])
    return found


def available_memory_mib() -> int:
    """What the kernel could give without swapping; CUDA's own figure ignores the page cache."""
    found = state.memory().get("available_bytes")
    return 4 * MAX_WORKSPACE_MIB if found is None else found >> 20


def default_workspace_mib(memory_mib: int) -> int:
    """An eighth of the memory, as a power of two: 512 MiB on an Orin with 8 GB."""
    share = max(int(memory_mib * WORKSPACE_SHARE), 16)
    return min(MAX_WORKSPACE_MIB, 1 << (share.bit_length() - 1))
