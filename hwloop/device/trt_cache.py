"""The timing cache that all builds on one device share, so that equal layers get equal kernels.

It is valid for one GPU model and one version of TensorRT, and what it says is true at the clocks
that it was timed at: all of it is in its name. A digest in front keeps torn or foreign bytes away
from TensorRT's native reader.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hwloop.device.cache import cache_folder, write

DIGEST_BYTES = 32
SLUG_CHARACTERS, NAME_DIGITS = 40, 10


def cache_path(version: str, device: str, conditions: Iterable[Sequence[str]]) -> str | None:
    """Where the cache of a device is kept, or None where there is no private folder for it.

    Args:
        conditions: (name, value) of what timings on this device depend on: the power mode, caps
            and locks of its clocks. They are in the name as a digest.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")[:SLUG_CHARACTERS]
    text = json.dumps([list(pair) for pair in conditions])
    digest = hashlib.sha256(text.encode()).hexdigest()[:NAME_DIGITS]
    try:
        return str(cache_folder() / f"timing-{version}-{slug}-{digest}.cache")
    except OSError:
        return None


def attach(config: Any, path: str) -> str:
    """Give a builder configuration the stored cache, or an empty one; says which, and why."""
    data, note = _read(Path(path))
    timing_cache = config.create_timing_cache(data)
    # Never with ignore_mismatch: timings of another GPU would pick the wrong kernels.
    if timing_cache is None or not config.set_timing_cache(timing_cache, False):
        note = "discarded: TensorRT refuses it"
        timing_cache = config.create_timing_cache(b"")
        if timing_cache is None or not config.set_timing_cache(timing_cache, False):
            return "none: TensorRT makes none"
    return note


def save(config: Any, path: str) -> str:
    """Store what a build added. A full disk costs the cache, not the build: it is in the note."""
    timing_cache = config.get_timing_cache()
    serialized = None if timing_cache is None else timing_cache.serialize()
    if serialized is None:
        return "; not saved: TensorRT gives none"
    data = bytes(serialized)
    try:
        write(Path(path), hashlib.sha256(data).digest() + data, durable=True)
    except OSError as error:
        return f"; not saved: {error}"
    return ""


def _read(path: Path) -> tuple[bytes, str]:
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return b"", "new"
    except OSError as error:
        return b"", f"unreadable: {error}"
    digest, data = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
        return b"", "discarded: its digest is wrong"
    return data, "loaded"
