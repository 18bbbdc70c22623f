"""Fetching a data set once into a cache folder, checked before it is used."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from hwloop.errors import EnvironmentProblem

TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 20


def cache_folder(name: str) -> Path:
    """``$XDG_CACHE_HOME/hwloop/NAME``, by default under ``~/.cache``; created when missing."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "hwloop" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch(url: str, path: Path, *, md5: str) -> None:
    """Download ``url`` to ``path``, which appears only when it is complete and its MD5 is right.

    Raises:
        EnvironmentProblem: the download failed, stalled for 30 seconds, or is not the file that
            was expected.
    """
    hint = f"download {url} yourself and give its folder with --data FOLDER"
    # MD5 is what the data sets publish: it tells a damaged file, and the data is only read.
    digest = hashlib.md5(usedforsecurity=False)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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
