"""The run folder: written so that a kill at any moment leaves it whole.

A run folder may come from somebody else: what is read from it is checked, nothing is written or
deleted through a link that leads out of it, and a folder that is no run is left alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hwloop.errors import UsageError
from hwloop.files import sync_folder, unwritable, write_atomically
from hwloop.parsing import to_json

FILES = (
    *("config.json", "hwloop.sqlite", "hwloop.sqlite-journal", "events.jsonl", ".lock"),
    *("dense.onnx", "report.json", "report.md"),
)
LINKS = ("best", ".best")
CANDIDATE = re.compile(r"candidates/[0-9a-f]{8,64}")
CANDIDATE_FOLDER = re.compile(r"\.?[0-9a-f]{8,64}")
TEMPORARY = re.compile(r"\.[\w.-]+\.\d+")
ANOTHER = "choose another folder: --run DIR"


class RunFolder:
    """``config.json``, ``hwloop.sqlite``, ``events.jsonl``, reports and ``best``.

    ``best`` is a link to one of ``candidates/*``, so that its files change together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.json"
        self.store_path = path / "hwloop.sqlite"
        self.report_path = path / "report.json"
        self.best = path / "best"

    def check(self) -> None:
        """Look before anything is written: is this a run's folder, or free to become one?

        Raises:
            UsageError: it is a file, holds something else, has links that lead out of it, or
                cannot be written.
        """
        try:
            if not self.path.is_dir():
                if self.path.exists() or self.path.is_symlink():
                    raise UsageError(f"{self.path} is no folder", ANOTHER)
                self._check_writable()
                return
            entries = sorted(entry.name for entry in os.scandir(self.path))
            strange = [name for name in entries if not _is_ours(name)]
            # Other programs have a config.json as well, and no store of ours beside it.
            is_run = os.path.lexists(self.config_path)
            is_run = is_run and (os.path.lexists(self.store_path) or not strange)
            if not is_run and strange:
                raise UsageError(
                    f"{self.path} is no run's folder: it holds {strange[0]!r}",
                    "name a new or an empty folder: --run DIR",
                )
            home = Path(os.path.expanduser("~"))
            used = {"that you are in": Path.cwd(), "that is your home": home}
            for which, folder in used.items():
                if not is_run and self.path.resolve() == folder.resolve():
                    raise UsageError(
                        f"a run would spread its files over the folder {which}",
                        "name a folder for them: --run DIR",
                    )
            self._check_entries(entries)
            for name in entries:
                if name in FILES and (self.path / name).lstat().st_nlink > 1:
                    # written in place, so the other name's content would change as well
                    raise _altered(self.path / name, "is the same file as another one")
            self._check_writable()
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}", ANOTHER) from error

    def check_readable(self) -> None:
        """Look before anything is read: it is in the folder, and is no pipe. Others may write.

        Raises:
            UsageError: a link leads out of it, or an entry is no regular file.
        """
        try:
            for name in FILES:
                _check_file(self.path / name)
            _check_folder(self.path / "candidates")
            best = self.best_folder()
            if best is not None:
                _check_candidate(best)
        except OSError as error:
            raise UsageError(
                f"cannot read {self.path}: {error.strerror}", "name the folder of a run"
            ) from error

    def best_folder(self) -> Path | None:
        """The folder that ``best`` points to, or None before there is one.

        Raises:
            UsageError: ``best`` is something else than a link to one of the candidates.
        """
        if not os.path.lexists(self.best):
            return None
        leads = str(self.best.readlink()) if self.best.is_symlink() else ""
        folder = self.path / leads
        if not CANDIDATE.fullmatch(leads) or folder.is_symlink():
            raise _altered(self.best, "is no link to one of the run's candidates")
        return folder

    def create(self) -> None:
        """Make the folder. Raises UsageError when that is not possible."""
        try:
            (self.path / "candidates").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot create the run folder {self.path}: {error.strerror}", ANOTHER
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; the kernel frees it when this process dies.

        Raises:
            UsageError: another process works in it, or it cannot be written.
        """
        try:
            file = (self.path / ".lock").open("a")
        except OSError as error:
            raise UsageError(
                f"the run folder {self.path} cannot be written: {error.strerror}", ANOTHER
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise self._busy() from error
            yield

    def check_free(self) -> None:
        """Raises UsageError while another process works in the folder; nothing is written."""
        with suppress(FileNotFoundError), (self.path / ".lock").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise self._busy() from error

    def _busy(self) -> UsageError:
        return UsageError(
            f"another hwloop works in {self.path}",
            "wait for it, or choose another folder: --run DIR",
        )

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to ``events.jsonl``: a log for people, never read back."""
        line = json.dumps({"time_s": round(time.time(), 3), "event": kind, **to_json(values)})
        path = self.path / "events.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise unwritable(path, error) from error

    def save_candidate(self, digest: str, files: dict[str, bytes]) -> Path:
        """Write a candidate's files; the folder appears complete or not at all."""
        folder = self.path / "candidates" / digest[:16]
        if _holds(folder, files):  # perhaps the best: it must not vanish, not even for a moment
            return folder
        partial = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            for name, data in files.items():
                write_atomically(partial / name, data)
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
        except OSError as error:
            raise unwritable(folder, error) from error
        return folder

    def set_best(self, folder: Path) -> None:
        """Point ``best`` at a candidate's folder, in one step, and drop the one before."""
        before = self.best_folder()
        link = self.path / ".best"
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(folder.relative_to(self.path))
            link.replace(self.best)
            sync_folder(self.path)
        except OSError as error:
            raise unwritable(self.best, error) from error
        if before is not None and before.name != folder.name:
            shutil.rmtree(before, ignore_errors=True)

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(to_json(value), indent=2, allow_nan=False) + "\n"
        write_atomically(self.path / name, text.encode())

    def _check_writable(self) -> None:
        """The folder, or the one in which it would be made."""
        there = self.path.absolute()
        while not os.path.lexists(there):
            there = there.parent
        if not os.path.isdir(there):
            raise UsageError(f"{there} is no folder, and a run cannot be in it", ANOTHER)
        if not os.access(there, os.W_OK | os.X_OK):
            raise UsageError(f"{there} cannot be written, and a run is to be in it", ANOTHER)

    def _check_entries(self, entries: list[str]) -> None:
        """What a run reads and writes is in its folder: no links out of it, no pipes."""
        for name in entries:
            path = self.path / name
            if name in FILES:
                _check_file(path)
            elif name != "best" and _is_replaced(name) and _kind(path) == stat.S_IFDIR:
                raise _altered(path, "is a folder")
        candidates = self.path / "candidates"
        _check_folder(candidates)
        if os.path.lexists(candidates):
            for entry in os.scandir(candidates):
                _check_candidate(Path(entry.path))
        self.best_folder()


def _holds(folder: Path, files: dict[str, bytes]) -> bool:
    try:
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
    except OSError:
        return False
    return found == files


def _is_ours(name: str) -> bool:
    return name in (*FILES, "candidates") or _is_replaced(name)


def _is_replaced(name: str) -> bool:
    """Whether a file or link of this name is made anew, and removed first where there is one."""
    return name in LINKS or TEMPORARY.fullmatch(name) is not None


def _check_candidate(path: Path) -> None:
    """An entry of ``candidates``: a network's folder, or a finalist's weights."""
    if not CANDIDATE_FOLDER.fullmatch(path.name):
        _check_file(path)
        return
    _check_folder(path)
    with suppress(FileNotFoundError):  # another hwloop has just found a better one
        for inner in os.scandir(path):
            _check_file(Path(inner.path))


def _check_file(path: Path) -> None:
    if _kind(path) not in (stat.S_IFREG, None):
        raise _altered(path, "is no regular file")


def _check_folder(path: Path) -> None:
    if _kind(path) not in (stat.S_IFDIR, None):
        raise _altered(path, "is no folder")


def _kind(path: Path) -> int | None:
    """What an entry is itself, or None where there is none, or none any more."""
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _altered(path: Path, how: str) -> UsageError:
    return UsageError(f"{path} {how}: the folder was altered", f"restore it, or {ANOTHER}")
