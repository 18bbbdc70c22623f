"""One file to send back: what the doctor saw, the board's own files, a run's report.

A zip of JSON files and a README, written in one step. Everything in it went through
:class:`hwloop.measure.doctor.scrub.Scrubber`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import getpass
import io
import json
import os
import platform
import socket
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwloop import __version__
from hwloop.device import recordings
from hwloop.errors import UsageError
from hwloop.files import read_json, write_atomically
from hwloop.measure.doctor.check import Visit
from hwloop.measure.doctor.facts import host_facts
from hwloop.measure.doctor.scrub import Scrubber
from hwloop.measure.profile import TargetProfile
from hwloop.parsing import to_json

SUFFIX = ".zip"
LEFT_OUT = "host names, user names, addresses, keys, serial numbers"
MAX_RECORDED_FILES, MAX_RECORDED_CHARACTERS = 2000, 64 << 10
MOST_NAMES, LONGEST_NAME = 8, 64
MEANING = {
    "checks.json": "every line of the examination",
    "target.json": "the target's name and what was found of it",
    "state.json": "clocks, heat, memory, power mode as they were",
    "results.json": "the figures of the five checks that build engines",
    "recordings.json": "the board's files: module, power modes, clocks, heat, rails, tegrastats",
    "versions.json": "what is installed on the host",
    "report.json": "the report of a run",
}


def check_place(path: Path) -> None:
    """Look before minutes are spent. Raises UsageError: no zip, no folder, or not to be written."""
    if path.suffix != SUFFIX:
        raise UsageError(f"{path}: a bundle is a zip", f"--bundle {path.stem or 'board'}{SUFFIX}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written", "name a file in a folder of yours")


def read_report(path: Path) -> Any:
    """A run's report.json. Raises UsageError."""
    return read_json(
        path / "report.json", what="a report", hint="--run DIR of a run that has ended"
    )


def write_bundle(path: Path, visit: Visit, *, profile: TargetProfile, report: Any = None) -> str:
    """Pack it.

    Returns:
        A sentence that says what is inside, and what is not.

    Raises:
        HwloopError: the disk is full or the folder cannot be written.
    """
    scrubber = Scrubber(_names(visit, profile))
    parts = {
        "checks.json": scrubber.value(to_json(visit.checks)),
        "target.json": scrubber.value(
            {"name": profile.name, "runtime": profile.runtime, "fingerprint": visit.fingerprint}
        ),
        "state.json": scrubber.value(visit.state),
        "results.json": scrubber.value(visit.results),
        "recordings.json": _recordings(visit.recordings, scrubber),
        "versions.json": _versions(),
        "report.json": scrubber.value(report),
    }
    inside = {name: value for name, value in parts.items() if value is not None}
    write_atomically(path, _zipped(inside))
    return f"{path}: {', '.join(inside)}; taken out: {LEFT_OUT}"


def _zipped(parts: Mapping[str, Any]) -> bytes:
    lines = [f"{name}: {MEANING[name]}" for name in parts]
    readme = "\n".join(["What hwloop doctor saw.", "", *lines, "", f"Taken out: {LEFT_OUT}.", ""])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_entry("README.txt"), readme)
        for name, value in parts.items():
            archive.writestr(_entry(name), json.dumps(value, indent=1, ensure_ascii=True) + "\n")
    return buffer.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    """Without a time: equal findings are equal files."""
    entry = zipfile.ZipInfo(f"hwloop-bundle/{name}")
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


def _names(visit: Visit, profile: TargetProfile) -> set[str]:
    """Of this machine and its user, and of the board's as far as they are known."""
    names = {socket.gethostname(), socket.gethostname().partition(".")[0], Path.home().name}
    with contextlib.suppress(KeyError, OSError, ImportError):  # a user without a name
        names.add(getpass.getuser())
    if profile.host is not None:
        names |= {profile.host.name, profile.host.name.partition(".")[0], profile.host.user or ""}
    found = visit.recordings.get("names") if isinstance(visit.recordings, Mapping) else None
    said = found[:MOST_NAMES] if isinstance(found, list) else []
    names |= {name[:LONGEST_NAME] for name in said if isinstance(name, str)}
    return names - {profile.name}


def _recordings(found: Any, scrubber: Scrubber) -> Any:
    """What a board sent, as far as it is what was asked for."""
    if not isinstance(found, Mapping):
        return None
    files, lines = found.get("files"), found.get("tegrastats")
    kept = {
        path: scrubber.recorded(text[:MAX_RECORDED_CHARACTERS])
        for path, text in (files if isinstance(files, Mapping) else {}).items()
        if isinstance(path, str) and isinstance(text, str) and _asked_for(path)
    }
    said = [line for line in (lines if isinstance(lines, list) else []) if isinstance(line, str)]
    return {
        "files": dict(list(kept.items())[:MAX_RECORDED_FILES]),
        "tegrastats": [scrubber.recorded(line[:MAX_RECORDED_CHARACTERS]) for line in said[:10]],
    }


def _asked_for(path: str) -> bool:
    patterns = (*recordings.FILES, *recordings.PATTERNS)
    depth = path.count("/")
    return path.isprintable() and any(
        pattern.count("/") == depth and fnmatch.fnmatchcase(path, pattern) for pattern in patterns
    )


def _versions() -> dict[str, Any]:
    facts = host_facts()
    return {
        "hwloop": __version__,
        "python": platform.python_version(),
        "machine": facts.machine,
        "cuda_driver": facts.cuda_driver,
        "packages": dict(facts.versions),
    }
