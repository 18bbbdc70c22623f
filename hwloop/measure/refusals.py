"""Why a worker did not start, in words that tell what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hwloop.errors import EnvironmentProblem, HwloopError, TargetError, UsageError
from hwloop.measure.profile import TargetProfile

NOT_FOUND = 127  # of a shell
OLD_BOARDS = ("Xavier", "TX2", "Jetson Nano", "Jetson-TX1")


class LinkLost(Exception):
    """The worker is gone, silent, or out of reach; the message says which.

    Attributes:
        pid: its process where one was started, 0 where that did not say which; else None.
    """

    def __init__(self, message: str, *, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


_ADVICE: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("Permission denied", "refuses your key", lambda host: f"ssh-copy-id {host}"),
    (
        "IDENTIFICATION HAS CHANGED",
        "shows another host key than before: another machine, or somebody in between",
        lambda host: f"if you know why: ssh-keygen -R {host}, then ssh {host} and compare the key",
    ),
    (
        "Host key verification failed",
        "is not known to this machine yet",
        lambda host: f"ssh {host}   once, and compare the key that it shows",
    ),
    (
        "Could not resolve",
        "is a name that nobody knows",
        lambda host: f"add `Host {host}` to ~/.ssh/config, or use --host user@address",
    ),
)
_PASSING = ("Connection refused", "timed out", "No route to host", "Network is unreachable")


def explained(
    profile: TargetProfile, error: BaseException, code: int | None, log: str
) -> Exception:
    """What went wrong at the start: a LinkLost where calling again may help.

    Args:
        error: what the host saw.
        code, log: of ``ssh``, its exit status and what it wrote.
    """
    if profile.transport != "ssh" or profile.host is None:
        text = str(error) or type(error).__name__
        return LinkLost(f"the worker did not start: {text}")
    address, host = str(profile.host), profile.host.destination
    name = f"target {profile.name!r} ({address})"
    for sign, meaning, fix in _ADVICE:
        if sign in log:
            return TargetError(f"{name} {meaning}", fix(host))
    last = (log.strip().splitlines() or [str(error) or type(error).__name__])[-1]
    if code == NOT_FOUND:
        return TargetError(
            f"{name} has no {profile.python!r}", 'set python = "/path/to/python3" in the profile'
        )
    if any(sign in log for sign in _PASSING):
        return LinkLost(f"{address} does not answer: {last}")
    return LinkLost(f"the worker on {address} did not start: {last}")


def refused(profile: TargetProfile, error: dict[str, Any]) -> Exception:
    """The worker's first word was an error: what it lacks decides what to do.

    Args:
        error: stage and message, as the worker sent them.
    """
    stage, message = str(error.get("stage")), str(error.get("message"))[:2000]
    where = f"target {profile.name!r}"
    if profile.host is not None:
        where += f" ({profile.host})"
    too_old = any(name in message for name in OLD_BOARDS) and "Orin" not in message
    fixes = {
        "python": "its last JetPack has TensorRT 8 and Python below 3.10: use an Orin or a Thor"
        if too_old
        else 'set python = "/usr/bin/python3.10" in the profile',
        "busy": f"wait, or ask who measures there; hwloop target check {profile.name}",
        "start": profile.kind.install(
            target=profile.name, python=profile.python, remote=profile.transport == "ssh"
        ),
        "settings": "correct [settings] in the profile; hwloop target show " + profile.name,
    }
    kind: type[HwloopError] = TargetError if stage in ("busy", "python") else EnvironmentProblem
    if profile.transport == "ssh":
        kind = TargetError
    if stage == "settings":
        kind = UsageError
    return kind(f"{where}: {message}", fixes.get(stage, f"hwloop doctor --target {profile.name}"))
