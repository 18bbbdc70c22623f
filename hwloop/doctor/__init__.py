"""What is missing or wrong, here and on a target, and the command that fixes it.

Facts are gathered by :func:`host_facts` here and by the worker's state there; the checks are plain
functions of them. Nothing is measured, changed or installed.
"""

from __future__ import annotations

from typing import Any

from hwloop.doctor.board import board_checks, start_check, unsupported_reason
from hwloop.doctor.check import Check
from hwloop.doctor.host import HostFacts, hidden_tensorrt, host_checks, host_facts
from hwloop.profile import TargetProfile

__all__ = [
    "Check",
    "HostFacts",
    "board_checks",
    "examine",
    "hidden_tensorrt",
    "host_checks",
    "host_facts",
    "start_check",
    "unsupported_reason",
]


def examine(profile: TargetProfile | None, *, board: dict[str, Any] | None) -> list[Check]:
    """Everything about this machine and, where ``board`` is given, about the target's.

    Args:
        board: the worker's state (:func:`hwloop.device.state.snapshot`) and ``python``,
            ``numpy``, ``runtime``, ``runtime_version``, ``lock`` (None or who holds it).
    """
    checks = host_checks(profile)
    if profile is not None and board is not None:
        checks += board_checks(profile, board)
    return checks
