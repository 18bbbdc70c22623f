"""The process of a worker and its pipes: on this machine, or at the other end of the system's ssh.

execnet (MIT) speaks over the pipes. Added here: a cap on what a board may send.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import execnet
from execnet import gateway_base, gateway_bootstrap

from hwloop.errors import EnvironmentProblem, TargetError
from hwloop.measure.hosts import check_python
from hwloop.measure.profile import TargetProfile

MAX_MESSAGE_BYTES = 16 << 20
MAX_UNREAD_BYTES = 64 << 20
"""What a worker may send without being asked, before its connection is closed."""

END_TIMEOUT_S = 5.0
FIRST_LINE = "import sys;exec(eval(sys.stdin.readline()))"  # execnet's own first step

SSH_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=5",
    "ServerAliveInterval=3",
    "ServerAliveCountMax=3",
    "ControlPath=none",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RequestTTY=no",
    "LogLevel=ERROR",
)
"""Never a question, never for ever. Host keys are checked as the user's configuration says."""


@contextmanager
def ssh_log() -> Iterator[Path]:
    """A file for ``ssh`` to say in what went wrong, apart from what the board's programs say.

    On Linux it is memory that no folder names, so that nothing stays behind when this process is
    killed. ``ssh`` closes what it inherits, and therefore opens it among this process's files.
    """
    own = Path("/proc/self").resolve()
    if sys.platform == "linux" and _opens_to_others(own):
        with open(os.memfd_create("ssh.log"), "rb") as memory:
            yield own / "fd" / str(memory.fileno())
    else:
        with tempfile.NamedTemporaryFile(prefix="hwloop-") as named:
            yield Path(named.name)


def _opens_to_others(own: Path) -> bool:
    """Whether programs of the same user may open this process's files: root owns those that not."""
    return own.exists() and own.stat().st_uid == os.geteuid()


def ssh_command(profile: TargetProfile, log: Path) -> list[str]:
    """The argument list of ``ssh``: all of it was checked by :mod:`hwloop.measure.hosts`."""
    host = profile.host
    if host is None:
        raise TargetError(f"target {profile.name!r} has no host", "--host user@board")
    options = [part for option in SSH_OPTIONS for part in ("-o", option)]
    port = ["-p", str(host.port)] if host.port else []
    python = check_python(profile.python)
    remote = f'{python} -u -c "{FIRST_LINE}"'
    return ["ssh", *options, *port, "-E", str(log), "--", host.destination, remote]


def started(profile: TargetProfile, log: Path) -> subprocess.Popen[bytes]:
    if profile.transport == "ssh":
        command = ssh_command(profile, log)
    else:
        command = [sys.executable, "-u", "-c", FIRST_LINE]
    try:
        # A session of its own: Ctrl-C reaches this process, which ends the worker in order.
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if profile.transport == "ssh" else None,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"} if profile.transport == "ssh" else None,
        )
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            f"{command[0]} is not installed", "apt-get install openssh-client"
        ) from error


class CappedIO(gateway_base.Popen2IO):
    """Pipes of a process; more than can be true, at once or unasked, ends the connection.

    Attributes:
        unread_bytes: received since the host last took a message, or heard a beat.
    """

    def __init__(self, process: subprocess.Popen[bytes], execmodel: Any) -> None:
        super().__init__(process.stdin, process.stdout, execmodel)
        self.process = process
        self.remoteaddress = "worker"
        self.unread_bytes = 0

    def read(self, numbytes: int) -> bytes:
        if numbytes > MAX_MESSAGE_BYTES:
            raise EOFError(f"a message of {numbytes} bytes")
        self.unread_bytes += numbytes
        if self.unread_bytes > MAX_UNREAD_BYTES:
            raise EOFError(f"{self.unread_bytes} bytes that nobody asked for")
        data: bytes = super().read(numbytes)
        return data

    def wait(self) -> int | None:
        try:
            return self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        self.process.kill()


def gateway(process: subprocess.Popen[bytes]) -> Any:
    execmodel = gateway_base.get_execmodel("thread")
    spec = execnet.XSpec("popen//python=python3//id=worker//execmodel=thread")
    try:
        return gateway_bootstrap.bootstrap(CappedIO(process, execmodel), spec)
    except gateway_bootstrap.HostNotFound as error:
        raise EOFError("ssh gave up") from error
    except AssertionError as error:
        raise EOFError("its shell prints text before Python starts: see ~/.bashrc there") from error
