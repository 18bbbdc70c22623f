"""What a board said, by dotted path; a value of another kind than expected is as good as none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwloop.parsing import one_line

LONGEST_TEXT = 120


def at(board: Mapping[str, Any], path: str) -> Any:
    """A value by its dotted path; None wherever the board says something else."""
    value: Any = board
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number(board: Mapping[str, Any], path: str) -> float | None:
    value = at(board, path)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def text(board: Mapping[str, Any], path: str) -> str | None:
    """A word of the board's, fit for a terminal: short, and without control characters."""
    value = at(board, path)
    return printable(value) if isinstance(value, str) and value else None


def texts(board: Mapping[str, Any], path: str) -> list[str]:
    values = at(board, path)
    items = values if isinstance(values, list) else []
    return [printable(item) for item in items[:8] if isinstance(item, str)]


def printable(text: str) -> str:
    return one_line(text, LONGEST_TEXT)


def mhz(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} MHz"
