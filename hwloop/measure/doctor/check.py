"""An examination and its lines, and the judgements that both machines share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hwloop.device.trt_import import OLDEST

OK, WARN, FAIL = "ok", "warn", "fail"
OLDEST_PYTHON = (3, 10)
NEWEST_TENSORRT = (11, 99)
GIB = 1 << 30
FEW_BYTES, NO_BYTES = 2 * GIB, 200 << 20


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of an examination.

    Attributes:
        state: ok, warn (works, but figures or comfort suffer) or fail (will not work).
        what: the finding, in words.
        fix: the command or the setting that helps, or None.
    """

    state: str
    what: str
    fix: str | None = None


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Everything that was seen.

    Attributes:
        checks: every line, in order.
        fingerprint, state: of the target as JSON values, or None where it did not start.
        results: figures of :mod:`hwloop.measure.doctor.engines` by name; empty where they were not
            made.
        recordings: the board's files, where they were asked for and could be had.
    """

    checks: tuple[Check, ...]
    fingerprint: Any = None
    state: Any = None
    results: dict[str, Any] | None = None
    recordings: Any = None

    @property
    def failed(self) -> bool:
        return any(check.state == FAIL for check in self.checks)


def tensorrt_problem(version: str) -> str | None:
    """Why this version of TensorRT is none to rely on, or None."""
    if numbers(version) < OLDEST:
        return "10.3 or newer is needed"
    if numbers(version) > NEWEST_TENSORRT:
        return "newer than any that hwloop was written for"
    return None


def room(free_bytes: int | None, where: str) -> list[Check]:
    """The line about free space, where it is known."""
    if free_bytes is None:
        return []
    text = f"{free_bytes / GIB:.1f} GiB free in {where}"
    if free_bytes >= FEW_BYTES:
        return [Check(state=OK, what=text)]
    state = FAIL if free_bytes < NO_BYTES else WARN
    return [Check(state=state, what=text, fix="make room: du -xh --max-depth=1 | sort -h")]


def load(load_average: float, cores: int) -> Check:
    """The line about what else runs on a machine."""
    text = f"load {load_average:.1f} on {cores} cores"
    if load_average > max(1.0, cores / 2):
        fix = "top   shows what runs there; stop it before measuring"
        return Check(state=WARN, what=f"{text}: timings will scatter", fix=fix)
    return Check(state=OK, what=text)


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``2.14.0+cpu`` is (2, 14, 0)."""
    found = re.match(r"\d{1,9}(\.\d{1,9})*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def dotted(parts: tuple[int, ...]) -> str:
    """Inverse of :func:`numbers`."""
    return ".".join(str(number) for number in parts)
