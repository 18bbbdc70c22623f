"""The worker of a session: started, known to be the right one, and replaced when it was lost.

It runs in its own process also on this machine, so that a crash of the runtime costs one candidate
and not the search. A lost one is replaced, on a board by calling it again for a while.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from hwloop.errors import CandidateError, TargetError
from hwloop.findings import Fingerprint
from hwloop.measure import answers
from hwloop.measure.answers import Nonsense, WorkerLost
from hwloop.measure.exchange import Data, Exchange
from hwloop.measure.link import Limits, Link, open_link
from hwloop.measure.profile import TargetProfile
from hwloop.measure.refusals import LinkLost
from hwloop.runtimes.graph import OnnxModel

FINGERPRINT_TIMEOUT_S = 30.0
BUILD_GRACE_S = 30.0
BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
KEPT_PIDS = 8


class SessionWorker:
    """One worker at a time, each with what its predecessors found; none before :meth:`start`.

    Args:
        limits: of silence, where they are not those of the profile's transport.
        held: another one of ours keeps others from the machine, and waits while this one measures.
    """

    def __init__(
        self, profile: TargetProfile, *, limits: Limits | None = None, held: bool = False
    ) -> None:
        self.profile = profile
        self._held = held
        self._limits = limits
        self._link: Link | None = None
        self._exchange: Exchange | None = None
        self._pid = 0
        self._lost_pids: list[int] = []
        self._present: set[str] = set()
        self._fingerprint: Fingerprint | None = None
        self._hello: answers.Hello | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the first one, which every later one has as well."""
        if self._fingerprint is None:
            raise TargetError("the target session is not open")
        return self._fingerprint

    @property
    def hello(self) -> answers.Hello:
        """The first word of the first one."""
        if self._hello is None:
            raise TargetError("the target session is not open")
        return self._hello

    @property
    def locks(self) -> bool:
        """Whether it keeps others from measuring on its machine."""
        alone = self.profile.transport == "ssh" or self.profile.kind.needs_device_alone
        return alone and not self._held

    # ------------------------------------------------------------------- what it is asked

    def request(self, verb: str, body: dict[str, Any], timeout_s: float, *, token: str = "") -> Any:
        """The result of one request, as :meth:`hwloop.measure.exchange.Exchange.request`."""
        return self._open_exchange().request(verb, body, timeout_s, token=token)

    def put(self, digest: str, data: Data) -> None:
        """Send what the next request needs. Raises WorkerLost."""
        self._open_exchange().put(digest, data)

    def put_model(self, model: OnnxModel) -> None:
        """Send a model, unless it is there. Raises WorkerLost."""
        if model.key in self._present:
            return
        self.put(model.digest, model.data)
        about = {"digest": model.digest, "model": model.key, "hints": model.hints}
        self.request("put_model", about, self.profile.call_timeout_s)
        self._present.add(model.key)

    def forget(self, model: OnnxModel) -> None:
        """Free a model, if it is there; it is not on a worker that was lost."""
        if model.key in self._present:
            self._present.discard(model.key)
            with contextlib.suppress(WorkerLost):
                self.request("forget", {"digest": model.key}, self.profile.call_timeout_s)

    def fetched(self, reply: Any, *, limit_bytes: int) -> dict[str, Any]:
        """A reply with its data, as :meth:`hwloop.measure.exchange.Exchange.fetched`."""
        return self._open_exchange().fetched(reply, limit_bytes=limit_bytes)

    def _open_exchange(self) -> Exchange:
        if self._exchange is None:
            raise WorkerLost("the target session is not open")
        return self._exchange

    # ------------------------------------------------------------------ its start and end

    def start(self) -> None:
        """Open the line and read the fingerprint.

        A board that answered before is called again for a while. Otherwise a worker that started
        and was lost is started once more; a board that cannot be reached, or refuses, is not.

        Raises:
            TargetError: it does not answer, refuses, or is another machine than before.
            EnvironmentProblem: something is missing that has to be installed.
        """
        is_first = self._fingerprint is None
        deadline = time.monotonic() + (0.0 if is_first else self.profile.reconnect_s)
        attempt = 0
        while True:
            try:
                return self._open()
            except (LinkLost, WorkerLost) as error:
                was_started = isinstance(error, WorkerLost) or error.pid is not None
                if isinstance(error, LinkLost) and error.pid:
                    self._note_lost(error.pid)
                once_more = is_first and was_started and attempt == 0
                if not once_more and time.monotonic() >= deadline:
                    raise TargetError(
                        f"target {self.profile.name!r}: {error}",
                        _reach(self.profile, was_started=was_started),
                    ) from error
            time.sleep(BACK_OFF_S[min(attempt, len(BACK_OFF_S) - 1)])
            attempt += 1

    def stop(self) -> None:
        """End it now; one that cannot be reached ends itself within seconds."""
        if self._link is not None:
            self._link.close()
            self._note_lost(self._pid)
            self._link = self._exchange = None

    def _open(self) -> None:
        """One worker, known to be the right one. Raises LinkLost or WorkerLost: it was lost."""
        self._link = open_link(self.profile, self._options(), self._limits)
        self._exchange = Exchange(self._link, timeout_s=self.profile.call_timeout_s)
        self._present = set()
        self._pid = self._link.pid
        try:
            hello = answers.hello(self._link.hello)
            self._pid = hello.pid
            value = self.request("fingerprint", {}, FINGERPRINT_TIMEOUT_S)
            found = Fingerprint.from_json(value)
        except (Nonsense, CandidateError, KeyError, TypeError, ValueError) as error:
            self.stop()
            raise TargetError(
                f"target {self.profile.name!r} cannot say what it is: {error}",
                f"hwloop doctor --target {self.profile.name}",
            ) from error
        except WorkerLost:
            self.stop()
            raise
        if self._fingerprint is not None and found != self._fingerprint:
            self.stop()
            raise TargetError(
                f"target {self.profile.name!r} came back as another machine: {found}",
                "restore its state, or start a new run folder",
            )
        self._fingerprint = found
        self._hello = self._hello or hello

    def _options(self) -> dict[str, Any]:
        # The builder's own deadline comes first, because it says what took so long.
        build_timeout_s = max(self.profile.build_timeout_s - BUILD_GRACE_S, 10.0)
        # What the first worker derived from its machine's state holds for the whole session.
        fixed = self._hello.fixed if self._hello else {}
        return {
            "runtime": self.profile.runtime,
            "settings": {**fixed, **self.profile.settings, "build_timeout_s": build_timeout_s},
            "lock": self.locks,
            "supersedes": self._lost_pids,
            "remote": self.profile.transport == "ssh",
        }

    def _note_lost(self, pid: int) -> None:
        """So that a successor may end it, should it still hold the board."""
        self._lost_pids = [*self._lost_pids, pid][-KEPT_PIDS:]


def _reach(profile: TargetProfile, *, was_started: bool) -> str:
    if was_started:
        return f"hwloop doctor --target {profile.name}"
    if profile.host is None:
        return f"hwloop target check {profile.name}"
    destination = profile.host.destination
    return f"ssh {destination}   must work without a question; or name it: --host user@board"
