"""Why a worker did not start, and what helps on the machine that it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hwloop.measure.doctor.check import FAIL, Check
from hwloop.measure.doctor.wheels import (
    SYSTEM_PYTHON,
    get_cuda,
    get_tensorrt,
    machine_of,
    newer_tensorrt,
    older_cuda,
)
from hwloop.measure.profile import TargetProfile
from hwloop.runtimes.known import RUNTIMES


def start_check(
    profile: TargetProfile, message: str, hint: str, board: Mapping[str, Any] | None = None
) -> Check:
    """The line for a worker that did not start, with the fix for what it said is missing.

    Args:
        board: its machine's state, where it could be had without the runtime.
    """
    machine = machine_of(board)
    if profile.transport == "ssh":
        machine = replace(machine, remote=True, python=profile.python)
    pip = f"{'on the board: ' if machine.remote else ''}{machine.python} -m pip install"
    numpy = f"{pip} numpy"
    if machine.remote and machine.python == SYSTEM_PYTHON:
        numpy = "on the board: sudo apt install python3-numpy"  # newer systems refuse pip there
    fixes = {
        "No module named 'tensorrt'": get_tensorrt(machine),
        "is too old, 10.3 is the oldest": newer_tensorrt(machine),
        "No module named 'numpy'": numpy,
        **{
            f"No module named {known.name!r}": f"{pip} {known.name}"
            for known in RUNTIMES
            if known.on_cpu
        },
        "insufficient for CUDA runtime version": older_cuda(machine),
        "no way to CUDA": get_cuda(machine),
    }
    sign = next((sign for sign in fixes if sign in message), None)
    if sign is None:
        return Check(state=FAIL, what=message, fix=hint or None)
    return Check(state=FAIL, what=_without_advice(message), fix=fixes[sign])


def _without_advice(message: str) -> str:
    """A worker's message ends in advice for every kind of machine; the fix is the one for this.

    Before it there may be several reasons, in parentheses.
    """
    reasons, closed, _ = message.rpartition("); ")
    return f"{reasons})" if closed and "(" in reasons else message.partition("; ")[0]
