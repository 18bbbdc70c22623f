"""Values that a worker names: what can be true of each, whoever sent it.

Each raises one of :data:`WRONG` where it cannot.
"""

from __future__ import annotations

import math
from typing import Any

MAX_LATENCY_MS = 1e7
MAX_NAMES = 64
WRONG = (AttributeError, LookupError, OverflowError, TypeError, ValueError)
"""What taking an answer apart raises when it is none."""


def amount(value: Any) -> float:
    """A finite number that is not negative."""
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{number} is no amount")
    return number


def number_or_none(value: Any) -> float | None:
    if value is None or (isinstance(value, (int, float)) and math.isfinite(value)):
        return value
    raise ValueError(f"{str(value)[:40]!r} is no number")


def share_or_none(value: Any) -> float | None:
    number = None if value is None else amount(value)
    if number is not None and number > 1:
        raise ValueError(f"{number} is no share")
    return number


def latency(value: Any) -> float:
    number = amount(value)
    if not 0 < number <= MAX_LATENCY_MS:
        raise ValueError(f"{number} ms")
    return number


def count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{str(value)[:40]!r} is no count")
    return value


def count_or_none(value: Any) -> int | None:
    return None if value is None else count(value)


def named(value: Any) -> dict[str, Any]:
    """A few things by name."""
    if not isinstance(value, dict) or len(value) > MAX_NAMES:
        raise ValueError("not a few things by name")
    if not all(isinstance(name, str) and 0 < len(name) <= MAX_NAMES for name in value):
        raise ValueError("a name is none")
    return value


def texts(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_NAMES:
        raise ValueError("not a list of names")
    return [str(name)[:80] for name in value]
