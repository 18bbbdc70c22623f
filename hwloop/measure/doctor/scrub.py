"""What must not leave a machine: names of people and machines, keys, serial numbers, addresses.

Keys of records that hold such a thing are dropped with their values; in text it is replaced by a
word in angle brackets. Names are only known where somebody says them, so text that may hold
others' (of a data set, of a task) is for the sender to look at; the bundle says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

SHORTEST_NAME = 3
GENERIC = frozenset(
    (
        *("root", "user", "admin", "home", "runner", "test", "localhost", "ubuntu", "debian"),
        *("nvidia", "jetson", "orin", "thor", "tegra-ubuntu", "cpu", "cuda", "rtx", "fake"),
        *("python", "tensorrt", "onnxruntime", "openvino", "hwloop", "demo"),
    )
)
"""Names that say nothing about anybody, and would tear holes into every other text."""

_DROPPED = re.compile(
    r"(.*_)?(uuid|serial|serial_number|mac|pid|lock|host|hostname|user|username|login|home|cwd)"
    r"|path|names|address",
    re.IGNORECASE,
)
_EVERYWHERE = (
    (
        re.compile(r"(?<=/home/)[^/\s\"':]+|(?<=/Users/)[^/\s\"':]+|(?<=/media/)[^/\s\"':]+"),
        "<user>",
    ),
    (re.compile(r"\b[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5}\b", re.IGNORECASE), "<mac>"),
    (
        re.compile(r"\b(?:GPU-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE),
        "<uuid>",
    ),
    (re.compile(r"^.*\bserial\b.*$", re.IGNORECASE | re.MULTILINE), "<serial>"),
    (re.compile(r"-----BEGIN [^-]*KEY-----.*?(?:-----END [^-]*KEY-----|\Z)", re.DOTALL), "<key>"),
    (re.compile(r"\b(?:ssh-\S+|ecdsa-\S+) AAAA\S+|\bSHA256:[\w+/=]{20,}"), "<key>"),
)
# Not in a board's files: a device tree has unit addresses behind its @.
_IN_WORDS = (
    (re.compile(r"[A-Za-z_][\w.+-]*@(?:[A-Za-z][\w.-]*|\d{1,3}(?:\.\d{1,3}){3})"), "<user>@<host>"),
    (
        re.compile(r"\b(?:192\.168|169\.254|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2}\b"),
        "<address>",
    ),
)


class Scrubber:
    """Takes out what identifies somebody.

    Args:
        names: of machines and people, as far as they are known; generic and very short ones stay.
    """

    def __init__(self, names: Collection[str]) -> None:
        known = {name for name in names if len(name) >= SHORTEST_NAME}
        known -= {name for name in known if name.lower() in GENERIC}
        words = "|".join(re.escape(name) for name in sorted(known, key=len, reverse=True))
        self._names = re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])", re.IGNORECASE)
        self._has_names = bool(known)

    def recorded(self, text: str) -> str:
        """A file of a board."""
        for pattern, word in _EVERYWHERE:
            text = pattern.sub(word, text)
        return self._names.sub("<name>", text) if self._has_names else text

    def text(self, text: str) -> str:
        """A message, a command, a path."""
        for pattern, word in _IN_WORDS:
            text = pattern.sub(word, text)
        return self.recorded(text)

    def value(self, value: Any) -> Any:
        """A JSON value, without the keys that must not be there."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            kept = {key: item for key, item in value.items() if not _DROPPED.fullmatch(str(key))}
            return {self.text(str(key)): self.value(item) for key, item in kept.items()}
        return value
