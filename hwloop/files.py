"""The run folder: written so that a kill at any moment leaves it whole."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hwloop.errors import HwloopError, UsageError
from hwloop.records import to_json


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name, flush to the disk, rename: readers see the old or the new file.

    Raises:
        HwloopError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HwloopError(
            f"cannot write {path}: {error.strerror}",
            "free disk space, or correct the folder's permissions, and repeat the command",
        ) from error


def read_json(path: Path, *, what: str) -> Any:
    """A JSON file's value. Raises UsageError when it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"no {what} at {path}", "name the folder of a run") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a readable {what}: {error}", "name another run") from error


class RunFolder:
    """``config.json``, ``hwloop.sqlite``, ``events.jsonl``, reports and ``best``.

    ``best`` is a link to one of ``candidates/*``, so that its files change together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.json"
        self.store_path = path / "hwloop.sqlite"
        self.best = path / "best"

    def create(self) -> None:
        """Make the folder. Raises HwloopError when that is not possible."""
        try:
            (self.path / "candidates").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HwloopError(
                f"cannot create the run folder {self.path}: {error.strerror}",
                "choose another folder: --run DIR",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; the kernel frees it when this process dies.

        Raises:
            UsageError: another process works in it.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"another hwloop works in {self.path}",
                    "wait for it, or choose another folder: --run DIR",
                ) from error
            yield

    def settle_config(self, config: dict[str, Any]) -> bool:
        """Store the configuration, or compare it with the stored one. True when resuming.

        Raises:
            UsageError: the folder belongs to a run with another configuration.
        """
        if not self.config_path.exists():
            write_atomically(self.config_path, _pretty(config))
            return False
        stored = read_json(self.config_path, what="config.json")
        wanted = to_json(config)
        names = sorted(set(stored) | set(wanted))
        different = [
            f"{name}: {stored.get(name)!r} there, {wanted.get(name)!r} now"
            for name in names
            if stored.get(name) != wanted.get(name)
        ]
        if different:
            raise UsageError(
                f"{self.path} holds a run with other settings:\n  " + "\n  ".join(different),
                "repeat the first command, or choose another folder: --run DIR",
            )
        return True

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to ``events.jsonl``: a log for people, never read back."""
        line = json.dumps({"time_s": round(time.time(), 3), "event": kind, **to_json(values)})
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save_candidate(self, digest: str, files: dict[str, bytes]) -> Path:
        """Write a candidate's files; the folder appears complete or not at all."""
        folder = self.path / "candidates" / digest[:16]
        partial = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
        except OSError as error:
            raise HwloopError(f"cannot write {partial}: {error.strerror}") from error
        for name, data in files.items():
            write_atomically(partial / name, data)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        return folder

    def set_best(self, folder: Path) -> None:
        """Point ``best`` at a candidate's folder, in one step, and drop the one before."""
        before = self.best.resolve() if self.best.is_symlink() else None
        link = self.path / ".best"
        link.unlink(missing_ok=True)
        link.symlink_to(folder.relative_to(self.path))
        link.replace(self.best)
        _sync_folder(self.path)
        if before is not None and before != folder.resolve():
            shutil.rmtree(before, ignore_errors=True)

    def write_json(self, name: str, value: Any) -> None:
        write_atomically(self.path / name, _pretty(value))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _pretty(value: Any) -> bytes:
    return (json.dumps(to_json(value), indent=2, allow_nan=False) + "\n").encode()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
