"""Profiles on the disk: found by name, read, and refused where something in them is wrong.

A profile is a TOML file under ``profiles/``. It holds no key, no password and no command.
profiles/README.md is the schema as a table.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from hwloop.errors import UsageError, closest
from hwloop.files import read_file
from hwloop.measure.hosts import parse_host
from hwloop.measure.profile import PACKAGE, TargetProfile, simulated
from hwloop.measure.profile_schema import parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGED = PACKAGE / "profiles"
CHECKOUT = PACKAGE.parent / "profiles"
LARGEST_PROFILE_BYTES = 1 << 20


def load_profile(name: str) -> TargetProfile:
    """Find a profile by name or path: an explicit file, ``./profiles``, the packaged copies.

    Raises:
        UsageError: unknown name (the closest is named), unreadable file, wrong key or value.
    """
    path = _find(name)
    text = read_file(
        path, what="a profile", limit_bytes=LARGEST_PROFILE_BYTES, hint="hwloop target list"
    )
    try:
        data = tomllib.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise UsageError(
            f"cannot read profile {path}: nested too deeply", "correct the file"
        ) from error
    except ValueError as error:  # of TOML, of UTF-8, of an integer with thousands of digits
        raise UsageError(f"cannot read profile {path}: {error}", "correct the file") from error
    return parse(path, data)


def resolve(target: str, *, host: str | None = None, simulate: bool = False) -> TargetProfile:
    """The target that a command is about.

    Args:
        host: measure at the other end of ``ssh`` to this host, whatever the profile says.
        simulate: compute latencies from the profile's datasheet instead of measuring.

    Raises:
        UsageError: unknown profile, impossible host, a profile without a datasheet, or one that
            asks for more cores than this machine has.
    """
    profile = load_profile(target)
    if simulate and host is not None:
        raise UsageError("--simulate needs no board, --host names one", "give one of the two")
    if simulate:
        return simulated(profile)
    if host is not None:
        return replace(profile, transport="ssh", host=parse_host(host))
    # At the other end of ssh it is the worker that counts.
    cores = len(os.sched_getaffinity(0))
    threads = profile.settings.get("threads", 1)
    if profile.transport == "local" and profile.kind.on_cpu and threads > cores:
        raise UsageError(
            f"target {target!r} asks for settings.threads = {threads}, this process may use "
            f"{cores} cores",
            f"threads = {cores} in [settings] of the profile",
        )
    return profile


def known_profiles() -> dict[str, Path]:
    """Every profile that ``--target`` finds by name."""
    found: dict[str, Path] = {}
    for folder in (Path("profiles"), PACKAGED, CHECKOUT):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def _find(name: str) -> Path:
    if name.endswith(".toml"):
        path = Path(name)
        if os.path.lexists(name):
            return path
        raise UsageError(f"no profile at {name}", "hwloop target list")
    profiles = known_profiles()
    if name in profiles:
        return profiles[name]
    raise UsageError(
        f"unknown target {name!r}: {closest(name, profiles)}",
        "hwloop target list   (or --target path/to/profile.toml)",
    )
