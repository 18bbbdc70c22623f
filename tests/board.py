"""A real board without its hardware: a real sshd whose Python has numpy and a runtime, no more.

It listens on loopback, or in a network namespace of its own whose link can be cut. The system's
``ssh`` finds it through a configuration of its own, so that nothing of the user's is touched.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
ALIAS = "board"
# Names of this process's own: several runs of the tests can have a board each.
NAMESPACE = f"hwloop-{os.getpid()}"
OUR_END, THEIR_END = f"hw0-{os.getpid()}", f"hw1-{os.getpid()}"
HERE, THERE = (f"10.199.{os.getpid() % 254}.{host}" for host in (1, 2))
ON_THE_BOARD = ("numpy", "numpy.libs", "onnxruntime")


def _bucket(doing: str, device: str) -> tuple[str, ...]:
    return ("tc", "qdisc", doing, "dev", device, "root")


def _run(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, timeout=30, check=False)


def _must(*command: str) -> None:
    done = _run(*command)
    assert done.returncode == 0, f"{command}: {done.stderr.decode()}"


def why_not(*, namespace: bool = False) -> str:
    """What this machine lacks for a board, or nothing."""
    if SSHD is None or shutil.which("ssh") is None:
        return "needs OpenSSH: apt-get install openssh-server openssh-client"
    if namespace and (os.getuid() != 0 or shutil.which("ip") is None):
        return "cutting a link needs root and iproute2 (network namespaces)"
    if namespace and _run("ip", "netns", "add", f"{NAMESPACE}-probe").returncode != 0:
        return "the kernel allows no network namespaces here"
    if namespace:
        _run("ip", "netns", "delete", f"{NAMESPACE}-probe")
    return ""


needs_board = pytest.mark.skipif(bool(why_not()), reason=why_not())
needs_link = pytest.mark.skipif(
    bool(why_not(namespace=True)), reason=why_not(namespace=True) or "-"
)


@dataclass(frozen=True, kw_only=True)
class Board:
    """A running board.

    Attributes:
        folder: its files; ``folder / "bin"`` goes in front of PATH, its ``ssh`` knows the board.
        python: the board's interpreter.
        sshd: the process of its daemon.
        cache: where the worker may keep files.
    """

    folder: Path
    python: Path
    sshd: subprocess.Popen[bytes]
    port: int
    namespace: bool

    @property
    def cache(self) -> Path:
        return self.folder / "cache" / "hwloop"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    def profile(self, path: Path, body: str = "", *, runtime: str = "fake") -> Path:
        """A profile of this board; ``body`` is added to its TOML."""
        lines = [
            'description = "a board of the tests"',
            f'runtime = "{runtime}"',
            'transport = "ssh"',
            f'host = "{ALIAS}"',
            f'python = "{self.python}"',
            "[space]",
            "align = 8",
            "[timeouts]",
            "build_s = 60",
            "call_s = 60",
            "reconnect_s = 30",
        ]
        for stage in ("row", "loop", "final", "bench"):
            lines += [f"[protocol.{stage}]", "warmup_s = 0.01", "time_limit_s = 0.2"]
        path.write_text("\n".join(lines) + "\n" + body)
        return path

    def workers(self) -> list[int]:
        """Processes that a worker left on the board, dead ones aside."""
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if words[0] == str(self.python).encode() and state != "Z":
                found.append(int(folder.name))
        return found

    def gone_within(self, seconds: float) -> bool:
        """Whether no worker is left on the board after so long at the latest."""
        end = time.monotonic() + seconds
        while self.workers() and time.monotonic() < end:
            time.sleep(0.1)
        return not self.workers()

    def cut(self) -> None:
        """Take the link down: packets vanish, no connection is told."""
        _must("ip", "link", "set", OUR_END, "down")

    def mend(self) -> None:
        _must("ip", "link", "set", OUR_END, "up")

    @contextmanager
    def shaped(self, *limits: str) -> Iterator[None]:
        """Slow the link down in both directions (tc's token bucket) for a while."""
        ends = {OUR_END: (), THEIR_END: ("ip", "netns", "exec", NAMESPACE)}
        try:
            for device, prefix in ends.items():
                _must(*prefix, *_bucket("add", device), "tbf", *limits)
            yield
        finally:
            for device, prefix in ends.items():
                _run(*prefix, *_bucket("delete", device))


@contextmanager
def board(folder: Path, *, namespace: bool = False) -> Iterator[Board]:
    """Start a board; everything of it is gone afterwards."""
    folder.chmod(0o755)
    python = _python(folder)
    port = 22 if namespace else _free_port()
    _keys(folder)
    address = THERE if namespace else "127.0.0.1"
    _configs(folder, address, port)
    prefix: list[str] = []
    if namespace:
        _link_up()
        prefix = ["ip", "netns", "exec", NAMESPACE]
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    command = [*prefix, str(SSHD), "-D", "-f", str(folder / "sshd_config")]
    sshd = subprocess.Popen([*command, "-E", str(folder / "sshd.log")])
    made = Board(folder=folder, python=python, sshd=sshd, port=port, namespace=namespace)
    try:
        _wait_for(made, address)
        yield made
    finally:
        sshd.kill()
        sshd.wait(10)
        for pid in made.workers():
            os.kill(pid, signal.SIGKILL)
        if namespace:
            _run("ip", "netns", "delete", NAMESPACE)
            _run("ip", "link", "delete", OUR_END)


def _python(folder: Path) -> Path:
    """An interpreter that sees numpy and ONNX Runtime of this environment and nothing else."""
    _must(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "venv" / "lib" / version / "site-packages"
    spec = importlib.util.find_spec("numpy")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent.parent
    for name in ON_THE_BOARD:
        if (source / name).exists():
            (packages / name).symlink_to(source / name)
    return folder / "venv" / "bin" / "python"


def _keys(folder: Path) -> None:
    for name in ("host_key", "key"):
        _must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    shutil.copy(folder / "key.pub", folder / "authorized_keys")


def _configs(folder: Path, address: str, port: int) -> None:
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress {address}\nHostKey {folder / 'host_key'}\n"
        f"AuthorizedKeysFile {folder / 'authorized_keys'}\nPidFile none\nStrictModes no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
        f"PermitRootLogin yes\nSetEnv XDG_CACHE_HOME={folder / 'cache'}\n"
    )
    (folder / "ssh_config").write_text(
        f"Host {ALIAS}\n  HostName {address}\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder / 'key'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder / 'known_hosts'}\n  GlobalKnownHostsFile none\n"
    )
    kind, key = (folder / "host_key.pub").read_text().split()[:2]
    place = address if port == 22 else f"[{address}]:{port}"
    (folder / "known_hosts").write_text(f"{place} {kind} {key}\n")
    binaries = folder / "bin"
    binaries.mkdir()
    wrapper = binaries / "ssh"
    real = shutil.which("ssh")
    wrapper.write_text(f'#!/bin/sh\nexec {real} -F {folder / "ssh_config"} "$@"\n')
    wrapper.chmod(0o755)


def _link_up() -> None:
    _run("ip", "netns", "delete", NAMESPACE)
    _run("ip", "link", "delete", OUR_END)
    _must("ip", "netns", "add", NAMESPACE)
    _must("ip", "link", "add", OUR_END, "type", "veth", "peer", "name", THEIR_END)
    _must("ip", "link", "set", THEIR_END, "netns", NAMESPACE)
    _must("ip", "addr", "add", f"{HERE}/30", "dev", OUR_END)
    _must("ip", "link", "set", OUR_END, "up")
    inside = ("ip", "netns", "exec", NAMESPACE, "ip")
    _must(*inside, "addr", "add", f"{THERE}/30", "dev", THEIR_END)
    _must(*inside, "link", "set", THEIR_END, "up")
    _must(*inside, "link", "set", "lo", "up")


def _wait_for(made: Board, address: str) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            with socket.create_connection((address, made.port), timeout=1):
                return
        except OSError:
            assert made.sshd.poll() is None, (made.folder / "sshd.log").read_text()
            time.sleep(0.05)
    raise AssertionError("sshd does not listen")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
