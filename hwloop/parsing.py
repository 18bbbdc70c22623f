"""Records as JSON, and JSON that anybody may have written as records. Pure: no I/O.

What is read here was exported, copied or edited elsewhere: a wrong value is a ValueError that names
the field, whatever it is, and nothing else is ever raised.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

Record = TypeVar("Record")
Check = Callable[[Any], Any]
"""Takes a JSON value, returns it as a record holds it, or raises ValueError."""

DEEPEST = 100
LARGEST_INT = (1 << 63) - 1
ANY_TEXT = r"(?s:.*)"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN is refused."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_json(value: Any) -> Any:
    """Turn records, enums and tuples into what ``json.dumps`` accepts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: to_json(getattr(value, field.name)) for field in fields}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that anybody may have written.

    Raises:
        ValueError: and nothing else: no JSON, NaN or infinity, an integer of more than 64 bits,
            invalid UTF-8 (lone surrogates too), a name twice in one object, nesting deeper than
            ``DEEPEST``.
    """
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"{shown(text)} is no text")
    try:
        value = json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            parse_constant=_no_number,
            parse_float=_json_float,
            parse_int=_json_int,
            object_pairs_hook=_json_object,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += [*item, *item.values()]
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str) and not item.isascii():
                item.encode("utf-8")  # UnicodeEncodeError is a ValueError
        if not inner:
            return value
        level = inner
    raise ValueError("nested too deeply")


def _no_number(text: str) -> Any:
    raise ValueError(f"{text[:20]} is no finite number")


def _json_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _json_int(text: str) -> int:
    value = int(text) if len(text) <= 20 else LARGEST_INT + 1
    if abs(value) > LARGEST_INT:
        raise ValueError(f"an integer of {len(text)} digits")
    return value


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that occurs twice in one object")
    return found


def read_record(kind: type[Record], value: Any, checks: dict[str, Check]) -> Record:
    """A record from a JSON object: every field checked, none unknown. Raises ValueError alone."""
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)} is no {kind.__name__}")
    unknown = [name for name in value if name not in checks]
    if unknown:
        raise ValueError(f"unknown fields of {kind.__name__}: {shown(unknown)}")
    fields = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in value:
            try:
                fields[field.name] = checks[field.name](value[field.name])
            except ValueError as error:
                raise ValueError(f"{kind.__name__}.{field.name}: {error}") from None
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{kind.__name__}.{field.name} is missing")
    return kind(**fields)


def shown(value: Any) -> str:
    """A value in an error message: short, and printable."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def one_line(text: str, longest: int) -> str:
    """A word out of a file or an answer, fit for a terminal: short, and in one line."""
    return "".join(c if c.isprintable() else "?" for c in text[:longest])


def printable(text: str) -> str:
    """Text without what a terminal would obey: names in a file from elsewhere may hold anything."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def an_int(low: int, high: int = (1 << 31) - 1) -> Check:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{shown(value)} is no integer from {low} to {high}")
        return value

    return check


def a_number(low: float, high: float) -> Check:
    def check(value: Any) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"{shown(value)} is no number")
        if not low <= value <= high:
            raise ValueError(f"{shown(value)} is not from {low:g} to {high:g}")
        return float(value)

    return check


def a_text(longest: int = 500, like: str = r"[^\x00-\x1f\x7f-\x9f]*") -> Check:
    """One line without control characters, because it will be printed."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest or not re.fullmatch(like, value):
            raise ValueError(f"{shown(value)} is no text that fits here")
        return value

    return check


def one_of(*words: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"{shown(value)} is none of {', '.join(words)}")
        return value

    return check


def a_list(check_item: Check, shortest: int, longest: int) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or not shortest <= len(value) <= longest:
            raise ValueError(f"{shown(value)} is no list of {shortest} to {longest}")
        return tuple(check_item(item) for item in value)

    return check


def optional(check_value: Check) -> Check:
    return lambda value: None if value is None else check_value(value)


def an_object(checks: dict[str, Check], *, later: dict[str, Check] | None = None) -> Check:
    """An object with exactly these names, each value checked.

    Args:
        later: names that came later: None where an older record lacks them.
    """
    added = later or {}

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or value.keys() - added.keys() != checks.keys():
            raise ValueError(f"{shown(value)} has not the fields {', '.join(checks)}")
        found = {name: check_value(value[name]) for name, check_value in checks.items()}
        for name, check_value in added.items():
            found[name] = optional(check_value)(value.get(name))
        return found

    return check


def a_flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{shown(value)} is neither true nor false")
    return value


def a_mapping(check_value: Check) -> Check:
    """An object with any names of printable text."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{shown(value)} is no object")
        return {a_text()(name): check_value(item) for name, item in value.items()}

    return check


def as_it_is(value: Any) -> Any:
    """Any JSON value: only shown or compared, never used."""
    return value


ANY_NUMBER = a_number(-1e300, 1e300)
A_COUNT = an_int(0, LARGEST_INT)
A_DIGEST = a_text(64, r"[0-9a-f]{64}")


def at_least(checks: dict[str, Check]) -> Check:
    """An object that has these names, each value checked; others are left as they are."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{shown(value)} is no object")
        for name, check_value in checks.items():
            if name not in value:
                raise ValueError(f"{name} is missing")
            try:
                check_value(value[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return value

    return check
