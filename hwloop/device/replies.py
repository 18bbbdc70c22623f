"""Replies that were paid for: kept in a private folder until the host has them.

When a link breaks after a measurement and before its reply arrived, the host asks again with the
same token, and gets what was measured instead of a second measurement.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

from hwloop.device.cache import cache_folder, write

MAX_KEPT = 8
_TOKEN = re.compile(r"[0-9a-f]{32}-[0-9]{1,9}")


class Replies:
    """The last few replies by token. A full or unwritable disk costs the memory, not the run."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        try:
            self.folder = cache_folder() / "replies"
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            self.folder = None

    def find(self, token: str) -> dict[str, Any] | None:
        """The reply that was kept under ``token``, or None."""
        path = self._path(token)
        if path is None:
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(), object_hook=_decode)
        except (OSError, ValueError):
            return None
        return found

    def keep(self, token: str, reply: dict[str, Any]) -> None:
        """Store a reply; it appears complete or not at all."""
        path = self._path(token)
        if path is None or self.folder is None:
            return
        try:
            write(path, json.dumps(reply, default=_encode).encode(), durable=False)
            self._thin()
        except (OSError, TypeError, ValueError):
            return

    def drop(self, token: str) -> None:
        """The host has it."""
        path = self._path(token)
        if path is not None:
            path.unlink(missing_ok=True)

    def _path(self, token: str) -> Path | None:
        if self.folder is None or not _TOKEN.fullmatch(token):
            return None
        return self.folder / f"{token}.json"

    def _thin(self) -> None:
        if self.folder is None:
            return
        paths = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in paths[:-MAX_KEPT]:
            path.unlink(missing_ok=True)


def _encode(value: Any) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"__bytes__": b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} cannot be kept")


def _decode(value: dict[str, Any]) -> Any:
    return b64decode(value["__bytes__"]) if set(value) == {"__bytes__"} else value
