"""What is missing or wrong, here and on a target, and the command that fixes it.

Facts are gathered by :func:`host_facts` here and by the worker's state there; the checks are plain
functions of them. :mod:`hwloop.measure.doctor.engines` builds and times what only the hardware
can tell; nothing is changed or installed. No framework is imported before that.
"""

from __future__ import annotations

from hwloop.measure.doctor.board import board_checks, unsupported_reason
from hwloop.measure.doctor.check import Check
from hwloop.measure.doctor.facts import HostFacts, cuda_driver, hidden_tensorrt, host_facts
from hwloop.measure.doctor.host import host_checks
from hwloop.measure.doctor.start import start_check

__all__ = [
    "Check",
    "HostFacts",
    "board_checks",
    "cuda_driver",
    "hidden_tensorrt",
    "host_checks",
    "host_facts",
    "start_check",
    "unsupported_reason",
]
