"""Where a board is: the one place that decides which strings may reach ``ssh``.

A host is ``name``, ``user@name``, ``user@name:port`` or the same behind ``ssh://``; names may be
OpenSSH aliases. Everything else is refused, because what looks like an option, a command or a
second line to ``ssh`` or to the shell behind it must never get there.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from hwloop.errors import UsageError

_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_PORT = re.compile(r"[0-9]{1,5}")
_PYTHON = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./+-]{0,253}")
SCHEME = "ssh://"


@dataclass(frozen=True, kw_only=True)
class Host:
    """One board, as ``ssh`` is told.

    Attributes:
        name: host name, OpenSSH alias, or IP address (version 6 without brackets).
        user, port: None leaves the choice to the user's OpenSSH configuration.
    """

    name: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        name = f"[{self.name}]" if ":" in self.name and self.port else self.name
        return f"{user}{name}" + (f":{self.port}" if self.port else "")

    @property
    def destination(self) -> str:
        """The last argument of ``ssh``, without the port."""
        return f"{self.user}@{self.name}" if self.user else self.name


def parse_host(text: str) -> Host:
    """Read a host that somebody typed or wrote into a profile.

    Raises:
        UsageError: whatever is not plainly a host; it is never passed on.
    """
    rest = text.removeprefix(SCHEME)
    user, at, place = rest.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise _refused(text)
    if place.startswith("["):
        name, bracket, port = place[1:].partition("]")
        if not bracket or not _is_ipv6(name) or (port and not port.startswith(":")):
            raise _refused(text)
        port = port[1:] if port else ""
        if place.endswith("]:"):
            raise _refused(text)
    elif _is_ipv6(place):
        name, port = place, ""
    else:
        name, colon, port = place.partition(":")
        if not _NAME.fullmatch(name) or (colon and not port):
            raise _refused(text)
    if port and not (_PORT.fullmatch(port) and 1 <= int(port) <= 65535):
        raise _refused(text)
    return Host(name=name, user=user if at else None, port=int(port) if port else None)


def check_python(path: str) -> str:
    """The board's interpreter, if it is a plain path. Raises UsageError."""
    if not _PYTHON.fullmatch(path):
        raise UsageError(
            f"{path!r} is no path of a Python interpreter", 'python = "/usr/bin/python3"'
        )
    return path


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text


def _refused(text: str) -> UsageError:
    return UsageError(
        f"{text[:80]!r} is no host",
        "user@host, user@host:port, ssh://user@host:port, or an alias of your OpenSSH config",
    )
