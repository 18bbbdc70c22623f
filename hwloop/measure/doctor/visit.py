"""``hwloop doctor``: this machine, then the target's. It needs no package: any may be missing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hwloop.measure.doctor.check import FAIL, Check, Visit
from hwloop.measure.doctor.facts import NEEDED, host_facts
from hwloop.measure.doctor.host import host_checks, install
from hwloop.measure.progress import Progress

if TYPE_CHECKING:
    from hwloop.measure.profile import TargetProfile

FOR_TARGETS = ("numpy", "execnet", "onnx", "tomli")
"""What it takes to look at any target."""


def visit(
    profile: TargetProfile | None,
    *,
    quick: bool = False,
    record: bool = False,
    progress: Progress | None = None,
) -> Visit:
    """Look at this machine and, with a profile, at the target's.

    A target that cannot be reached is a line of the result, not an error.

    Args:
        quick: reading only, in seconds; else engines are built on TensorRT targets.
        record: also read the board's files for a bundle.
    """
    here = tuple(host_checks(profile))
    if profile is None:
        return Visit(checks=here)
    from hwloop.measure.doctor.there import examined

    there = examined(profile, quick=quick, record=record, progress=progress or Progress())
    return replace(there, checks=(*here, *there.checks))


def without(target: str) -> Visit | None:
    """This machine alone, where it lacks what it takes to look at a target; None where it does not.

    Its profile cannot even be read then.
    """
    facts = host_facts()
    missing = [name for name in FOR_TARGETS if name in NEEDED and name not in facts.versions]
    if not missing:
        return None
    what = f"target {target!r} cannot be looked at without {', '.join(missing)}"
    line = Check(state=FAIL, what=what, fix=install(*missing))
    return Visit(checks=(*host_checks(None, facts), line))
