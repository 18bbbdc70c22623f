"""The private folder of the worker, and the one way to write into it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path:
    """``~/.cache/hwloop``, private: the one thing of ours that stays on a board.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "hwloop"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    folder.chmod(0o700)
    return folder


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder, private and gone afterwards; what killed workers left of theirs goes first.

    Raises:
        OSError: see :func:`cache_folder`, or no room.
    """
    parent = cache_folder() / "scratch"
    parent.mkdir(mode=0o700, exist_ok=True)
    for left in parent.iterdir():
        if not _lives(left.name.partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: str) -> bool:
    return pid.isdigit() and Path(f"/proc/{pid}").exists()


def write(path: Path, data: bytes, *, durable: bool) -> None:
    """Write a file that appears complete or not at all; nothing is left of one that failed.

    Args:
        durable: it must survive a power cut, which costs the time of a sync.

    Raises:
        OSError: no room, or no permission.
    """
    descriptor, partial = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
