"""The private folder of the worker, and the one way to write into it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

HELD = ".held"  # in a scratch folder: locked while it is used


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

    It lies in the private folder, and among the system's temporary ones where there is no such
    folder: a home may be read-only.

    Raises:
        OSError: no room.
    """
    try:
        folder, held = _own_scratch(cache_folder())
    except (OSError, RuntimeError):  # RuntimeError: no home
        folder, held = Path(tempfile.mkdtemp(prefix="hwloop-")), None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _own_scratch(private: Path) -> tuple[Path, int]:
    """A new folder and the lock that says that it is in use; folders that nobody holds are removed.

    A lock ends with its process and is seen where process numbers are not: in another container,
    on another board with the same home.
    """
    parent = private / "scratch"
    parent.mkdir(mode=0o700, exist_ok=True)
    turn = _locked(private / "scratch.lock", fcntl.LOCK_EX)
    try:
        for left in parent.iterdir():
            _remove_unless_held(left)
        folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
        return folder, _locked(folder / HELD, fcntl.LOCK_EX)
    finally:
        os.close(turn)


def _remove_unless_held(folder: Path) -> None:
    try:
        mine = _locked(folder / HELD, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.close(mine)


def _locked(path: Path, operation: int) -> int:
    """The descriptor that holds the lock until it is closed. Raises OSError: another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


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
