"""Fetching a data set once into a cache folder, checked before it is used."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from http.client import HTTPException
from pathlib import Path

from hwloop.errors import EnvironmentProblem, UsageError

TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 20

_forbidden = ContextVar("_forbidden", default=False)


@contextmanager
def no_downloads() -> Iterator[None]:
    """While active, :func:`fetch` refuses and says what it would have downloaded."""
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


def cache_folder(name: str) -> Path:
    """``$XDG_CACHE_HOME/hwloop/NAME``, by default under ``~/.cache``; may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "hwloop" / name


def fetch(url: str, path: Path, *, md5: str, size_bytes: int) -> None:
    """Download ``url`` to ``path``, which appears only when it is complete and its MD5 is right.

    Args:
        size_bytes: what the publisher says; told to whoever only asks what would happen.

    Raises:
        UsageError: downloads are forbidden for now, see :func:`no_downloads`.
        EnvironmentProblem: the download failed, stalled for 30 seconds, or is not the file that
            was expected.
    """
    hint = f"download {url} yourself and give its folder with --data FOLDER"
    if _forbidden.get():
        raise UsageError(
            f"{url} ({size_bytes / 1e6:.3g} MB) would be downloaded to {path}, but a dry run "
            "downloads nothing",
            "repeat without --dry-run, or give the data set's folder with --data FOLDER",
        )
    # MD5 is what the data sets publish: it tells a damaged file, and the data is only read.
    digest = hashlib.md5(usedforsecurity=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write to {path.parent}: {error.strerror}",
            "give another cache folder with XDG_CACHE_HOME=FOLDER, or the data with --data FOLDER",
        ) from error
    try:
        with (
            os.fdopen(handle, "wb") as file,
            urllib.request.urlopen(url, timeout=TIMEOUT_S) as response,  # noqa: S310 - https constants
        ):
            while chunk := response.read(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != md5:
            raise EnvironmentProblem(
                f"{url} has the MD5 {digest.hexdigest()}, expected {md5}: damaged or replaced", hint
            )
        os.replace(partial, path)
    except (OSError, HTTPException) as error:
        raise EnvironmentProblem(f"cannot download {url}: {error}", hint) from error
    finally:
        Path(partial).unlink(missing_ok=True)
