"""A line to a worker: a process of this machine, or one at the other end of the system's ``ssh``.

execnet (MIT) carries the messages and sends the worker's code, so nothing is installed on a board.
Added here: a deadline for the start, and a pulse in both directions from the first byte on.
"""

from __future__ import annotations

import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwloop.measure import transport
from hwloop.measure.profile import TargetProfile
from hwloop.measure.refusals import LinkLost, explained, refused
from hwloop.measure.transport import END_TIMEOUT_S

START_TIMEOUT_S = 120
BEAT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds of silence after which the other side is taken for lost.

    Attributes:
        start_s: until the worker's first word, on both sides; also the deadline of that word. An
            import may hold the worker's interpreter, which then hears and beats nothing: TensorRT
            from the SD card of a small board takes half a minute.
        host_s: how long the host waits for a sign of life afterwards.
        worker_s: how long the worker does before it ends itself: its host is gone, or the link is
            cut.
        beat_s: how often the host gives a sign of life, which the worker answers.
    """

    worker_s: int
    start_s: int = START_TIMEOUT_S
    host_s: float = 15.0
    beat_s: float = BEAT_S


LIMITS = {"ssh": Limits(worker_s=9), "local": Limits(worker_s=60)}
"""By transport."""

WATCH_S = 1.0

BOOTSTRAP = """
import sys

sources, pulse, options = channel.receive()
if sys.version_info < (3, 10):
    found = sys.version.split()[0]
    message = sys.executable + " is Python " + found + ", the worker needs 3.10 or newer"
    try:
        with open("/proc/device-tree/model") as file:
            message += "; this is a " + file.read(100).strip("\\0\\n ")
    except (OSError, ValueError):
        pass
    channel.send({"id": 0, "error": {"stage": "python", "message": message}})
else:
    import importlib.abc, importlib.util, time

    class Sent(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
        def find_spec(self, name, path=None, target=None):
            if name not in sources:
                return None
            package = name in ("hwloop", "hwloop.device")
            return importlib.util.spec_from_loader(name, self, is_package=package)
        def get_source(self, name):
            return sources[name]
        def is_package(self, name):
            return name in ("hwloop", "hwloop.device")

    sys.meta_path.insert(0, Sent())
    from hwloop.device.watchdog import Watchdog
    limits = {name: options[name] for name in ("start_s", "silence_s", "remote")}
    watchdog = Watchdog(pulse, **limits)
    try:
        started = time.perf_counter()
        import numpy
        options["import_s"] = {"numpy": time.perf_counter() - started}
        from hwloop.device.serve import serve
    except ImportError as error:  # of numpy: everything else is in the standard library
        channel.send({"id": 0, "error": {"stage": "start", "message": str(error)}})
    else:
        serve(channel, watchdog, options)
"""


class Link:
    """One started worker. Make it with :func:`open_link`; always :meth:`close` it."""

    def __init__(self, process: subprocess.Popen[bytes], gateway: Any, limits: Limits) -> None:
        self.hello: dict[str, Any] = {}
        self.pid = 0
        self._process = process
        self._gateway = gateway
        self._limits = limits
        self._silence_s: float = limits.start_s
        self._channel = gateway.remote_exec(BOOTSTRAP)
        self._pulse = gateway.newchannel()
        self._heard = time.monotonic()
        self._silent = ""
        self._closed = threading.Event()

    def start(self, options: dict[str, Any]) -> None:
        """Send the worker its code and wait for its first word."""
        limits = self._limits
        waits = {"start_s": limits.start_s, "silence_s": limits.worker_s}
        self._pulse.setcallback(self._hear)
        self._channel.send((sources(), self._pulse, {**options, **waits}))
        for work in (self._beat, self._watch):
            threading.Thread(target=work, daemon=True).start()
        hello = self.receive(limits.start_s)
        if not isinstance(hello, dict) or not {"error", "result"} & set(hello):
            raise LinkLost("its first word is none that a worker says")
        self.hello = hello
        self._silence_s = limits.host_s

    def send(self, message: Any) -> None:
        """Raises LinkLost."""
        try:
            self._channel.send(message)
        except OSError as error:
            raise LinkLost(self._silent or f"the connection is closed: {error}") from error

    def receive(self, timeout_s: float) -> Any:
        """The worker's next message. Raises LinkLost: closed, silent, or later than allowed."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LinkLost(f"no answer within {timeout_s:.0f} s")
            try:
                message = self._channel.receive(min(left, 1.0))
            except self._channel.TimeoutError:
                continue
            except (EOFError, OSError) as error:
                raise LinkLost(self._silent or "the worker died") from error
            except self._channel.RemoteError as error:
                reason = str(error).strip().splitlines()[-1][:500]
                raise LinkLost(f"the worker failed ({reason})") from error
            self._heard = time.monotonic()
            self._gateway._io.unread_bytes = 0
            return message

    def close(self) -> None:
        """End the worker, or the ``ssh`` to it, now. A worker behind ``ssh`` ends by itself."""
        self._closed.set()
        self._process.kill()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # uninterruptible: the kernel will end it
            return
        self._gateway.join(END_TIMEOUT_S)

    def _hear(self, beat: Any) -> None:
        self._heard = time.monotonic()
        self._gateway._io.unread_bytes = 0
        if (
            isinstance(beat, int) and beat > 0
        ):  # its first word here; the others are ours, sent back
            self.pid = beat

    def _beat(self) -> None:
        while not self._closed.wait(self._limits.beat_s):
            try:
                self._pulse.send(0)
            except OSError:
                return

    def _watch(self) -> None:
        """Kill a silent worker, or the ``ssh`` to it, which ends a wait or a send to it as well."""
        before = time.monotonic()
        while not self._closed.wait(WATCH_S):
            now = time.monotonic()
            if now - before > 2 * WATCH_S:
                self._heard = now  # this process slept or starved: what came meanwhile is unread
            elif now - self._heard > self._silence_s:
                self._silent = f"no sign of life for {self._silence_s:.0f} s"
                self._process.kill()
                return
            before = now


def open_link(
    profile: TargetProfile, options: dict[str, Any], limits: Limits | None = None
) -> Link:
    """Start a worker and hear its first word.

    Args:
        options: for :func:`hwloop.device.serve.serve`: runtime, settings, lock, supersedes, remote.
        limits: of silence; those of the profile's transport where there are none.

    Raises:
        LinkLost: it cannot be reached now; calling again later may help.
        TargetError, EnvironmentProblem, UsageError (the profile asks for what there is not):
            calling again will not help; the message says what will.
    """
    with transport.ssh_log() as log:
        process = transport.started(profile, log)
        limits = limits or LIMITS[profile.transport]
        killer = threading.Timer(limits.start_s, process.kill)
        killer.start()
        link = None
        try:
            link = Link(process, transport.gateway(process), limits)
            link.start(options)
        except (LinkLost, OSError, EOFError) as error:
            process.kill()
            code = process.wait(END_TIMEOUT_S)
            reason = log.read_text(errors="replace")
            found = explained(profile, error, code, reason)
            if link is not None and isinstance(found, LinkLost):
                found.pid = link.pid
            raise found from error
        finally:
            killer.cancel()
            if link is None:
                process.kill()
            elif not link.hello:
                link.close()
    if "error" in link.hello:
        link.close()
        raise refused(profile, link.hello["error"])
    return link


def sources() -> dict[str, str]:
    """The worker's modules as text, by name."""
    found = {"hwloop": ""}
    for path in (Path(__file__).parents[1] / "device").glob("*.py"):
        name = "hwloop.device" if path.stem == "__init__" else f"hwloop.device.{path.stem}"
        found[name] = path.read_text(encoding="utf-8")
    return found
