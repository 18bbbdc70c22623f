"""Arrays too large for memory: rows that arrive in parts, kept in a file without a name."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hwloop.errors import EnvironmentProblem

KEPT_BYTES = 128 << 20
"""Of one thing in memory: a split's inputs, its targets, a network's outputs."""

CHUNK = 500
CHUNK_BYTES = 32 << 20
"""Samples at a time, of inputs and of outputs."""

FALLBACK_FOLDER = "/var/tmp"  # noqa: S108 - a file without a name; /tmp may be memory
MADV_PAGEOUT = 21  # linux/mman.h, since 5.4; Python has no name for it
HAND_BACK_EVERY_S = 0.005


def fitting(size_bytes: int, count: int) -> int:
    """How many samples make a chunk, when ``count`` of them take ``size_bytes``."""
    return max(1, min(CHUNK, CHUNK_BYTES * count // max(size_bytes, 1)))


class Stack:
    """Rows that arrive in parts: in memory, or in a file without a name where they are many.

    The file is in the folder that TMPDIR names, or in /var/tmp, and is gone with this object and
    its arrays.

    Args:
        count: rows that will arrive.
        what: they are, for messages.
    """

    def __init__(self, count: int, what: str) -> None:
        self._count = count
        self._what = what
        self._parts: list[NDArray[Any]] = []
        self._file: IO[bytes] | None = None
        self._rows = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Add (n, ...) rows.

        Raises:
            EnvironmentProblem: there is no room for all of them.
            ValueError: rows of another shape or type than the first.
        """
        if not self._parts:
            size_bytes = rows[:1].nbytes * self._count
            if size_bytes > KEPT_BYTES:
                self._file = _file_for(size_bytes, self._what)
        self._rows += len(rows)
        if self._file is None:
            self._parts.append(rows)
            return
        first = self._parts[0] if self._parts else rows[:1].copy()
        self._parts = [first]
        if rows.dtype != first.dtype or rows.shape[1:] != first.shape[1:]:
            raise ValueError(f"{self._what}: {rows.dtype} {rows.shape} after {first.dtype}")
        try:
            self._file.write(np.ascontiguousarray(rows).data)
        except OSError as error:
            raise _no_room(self._what, error) from error

    def array(self) -> NDArray[Any]:
        """All rows. Changing them changes nothing but the array that was returned.

        Raises:
            EnvironmentProblem: there is no room for all of them.
        """
        if self._file is None:
            return np.concatenate(self._parts)
        first = self._parts[0]
        shape = (self._rows, *first.shape[1:])
        try:
            self._file.flush()
            os.fdatasync(self._file.fileno())  # only what is on the disk can be handed back
            mapped = mmap.mmap(
                self._file.fileno(),
                self._rows * first.nbytes,
                flags=mmap.MAP_PRIVATE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
        except OSError as error:
            raise _no_room(self._what, error) from error
        return np.frombuffer(mapped, dtype=first.dtype).reshape(shape)


@contextlib.contextmanager
def handed_back(*arrays: NDArray[Any]) -> Iterator[None]:
    """Keep little of what is read of a :class:`Stack`'s file in memory while this is open.

    The kernel would take the pages back when it needs them; until then they count as this
    process's, which on a small machine is what is killed first.
    """
    mappings = [found for found in map(_mapping, arrays) if found is not None]
    if not mappings:
        yield
        return
    ended = threading.Event()

    def hand_back() -> None:
        while not ended.wait(HAND_BACK_EVERY_S):
            for mapping in mappings:
                with contextlib.suppress(OSError, ValueError):  # an older kernel; closed
                    mapping.madvise(MADV_PAGEOUT)

    thread = threading.Thread(target=hand_back, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _mapping(array: Any) -> mmap.mmap | None:
    """What lies below an array and its views."""
    found = array
    while isinstance(found, np.ndarray):
        found = found.base
    found = found.obj if isinstance(found, memoryview) else found
    return found if isinstance(found, mmap.mmap) else None


def _file_for(size_bytes: int, what: str) -> IO[bytes]:
    folder = _folder()
    try:
        free = shutil.disk_usage(folder).free
        if free < size_bytes:
            raise OSError(f"{free >> 20} MiB are free, {size_bytes >> 20} are needed")
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise _no_room(what, error) from error


def _folder() -> Path:
    return Path(os.environ.get("TMPDIR") or FALLBACK_FOLDER)


def _no_room(what: str, error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{what} cannot be kept in a file in {_folder()}: {error}",
        "export TMPDIR=/a/folder/with/room",
    )
