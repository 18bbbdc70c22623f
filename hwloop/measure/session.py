"""The host side of a device: a session with the worker process, with deadlines and retries.

The worker runs in its own process also on this machine, so that a crash of the runtime costs one
candidate and not the search. A lost one is replaced, on a board by calling it again for a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from hwloop.errors import CandidateError, TargetError
from hwloop.findings import Fingerprint, Measurement, Protocol
from hwloop.measure import answers
from hwloop.measure.answers import Engine, LostTwice, Nonsense, WorkerLost
from hwloop.measure.exchange import Exchange
from hwloop.measure.link import Limits, Link, open_link
from hwloop.measure.profile import TargetProfile
from hwloop.measure.refusals import LinkLost
from hwloop.parsing import to_json
from hwloop.runtimes.graph import OnnxModel

Parsed = TypeVar("Parsed")

FINGERPRINT_TIMEOUT_S = 30.0
BUILD_GRACE_S = 30.0
ATTEMPTS = 2
BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
MAX_CHUNK_BYTES = 32 << 20
"""Of inputs and of outputs in one request: neither side holds more, however many inputs come."""

MAX_OUTPUT_BYTES = 1 << 30
MAX_ENGINE_BYTES = 4 << 30
TOOL_S = 60.0
IDLE_S = 10.0
MAX_CONSECUTIVE_LOSSES = 6
BUILDING = (
    *("build", "engine", "compare", "infer", "energy"),
    *("cross_check", "copies", "launch_floor", "layer_profile"),
)


class DeviceSession:
    """A context manager: nothing touches the target before ``__enter__``.

    A request that loses the worker is repeated once with a new worker. A candidate that loses two
    workers is a CandidateError; a target that cannot be brought back, or keeps losing workers
    whatever it is given, is a TargetError.

    Args:
        limits: of silence, where they are not those of the profile's transport.
    """

    def __init__(self, profile: TargetProfile, *, limits: Limits | None = None) -> None:
        self.profile = profile
        self._limits = limits
        self._link: Link | None = None
        self._exchange: Exchange | None = None
        self._pid = 0
        self._lost_pids: list[int] = []
        self._name = uuid.uuid4().hex
        self._work = 0
        self._present: set[str] = set()
        self._outputs: dict[str, tuple[int, str, tuple[int, ...]]] = {}
        self._losses = 0
        self._fingerprint: Fingerprint | None = None
        self._hello: answers.Hello | None = None

    def __enter__(self) -> DeviceSession:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def fingerprint(self) -> Fingerprint:
        """What was found on the device; read once per session."""
        if self._fingerprint is None:
            raise TargetError("the target session is not open")
        return self._fingerprint

    @property
    def import_s(self) -> dict[str, float]:
        """Seconds that each package took to be imported there, when the session was opened."""
        if self._hello is None:
            raise TargetError("the target session is not open")
        return self._hello.import_s

    @property
    def capabilities(self) -> frozenset[str]:
        """What its worker can do that not every one can; see hwloop.device.runtime."""
        if self._hello is None:
            raise TargetError("the target session is not open")
        return self._hello.capabilities

    @property
    def locks(self) -> bool:
        """Whether this kind of session keeps others from measuring on the same machine."""
        return self.profile.transport == "ssh" or self.profile.kind.needs_device_alone

    @property
    def isa(self) -> str:
        return dict(self.fingerprint.settings).get("isa", "")

    def state(self) -> dict[str, Any]:
        """Clocks, load and heat as the worker reads them now."""
        found: dict[str, Any] = self._request("state", {}, self.profile.call_timeout_s)
        return found

    def recordings(self) -> dict[str, Any]:
        """The machine's own files, tegrastats lines and names; see device/recordings.py."""
        found: dict[str, Any] = self._request("recordings", {}, self.profile.call_timeout_s)
        return found

    def build(self, model: OnnxModel) -> float:
        """Open the engine on the device: seconds it took. Raises CandidateError."""
        request = {"model": model.key}
        return self._with_retries("build", [model], request, parse=answers.build_s)

    def measure(
        self,
        model: OnnxModel,
        reference: OnnxModel,
        *,
        protocol: Protocol,
        reference_latency_ms: float,
    ) -> Measurement:
        """Time ``model`` interleaved with ``reference``; raises CandidateError or TargetError."""
        request = {
            "model": model.key,
            "reference": reference.key,
            "protocol": to_json(protocol),
        }
        extra_s = protocol.time_limit_s + protocol.warmup_s
        return self._with_retries(
            "compare",
            [model, reference],
            request,
            extra_s=extra_s,
            parse=lambda reply: answers.measurement(reply, reference_latency_ms),
        )

    def infer(self, model: OnnxModel, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The deployed engine's first output for every input, stacked; raises CandidateError.

        They go in chunks of bounded size; who has many inputs asks for a chunk at a time as well.
        """
        found = list(self._inferred(model, inputs))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _inferred(
        self, model: OnnxModel, inputs: np.ndarray[Any, Any]
    ) -> Iterator[np.ndarray[Any, Any]]:
        start = 0
        while start < len(inputs):
            # What an input costs, outputs included, is known from the first one, sent alone.
            known = self._outputs.get(model.key)
            most = 1 if known is None else max(MAX_CHUNK_BYTES // max(known[0], 1), 1)
            chunk = np.ascontiguousarray(inputs[start : start + most])
            yield self._infer_chunk(model, chunk)
            start += len(chunk)

    def _infer_chunk(self, model: OnnxModel, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        data = inputs.reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(data).hexdigest()
        about = {"inputs": digest, "dtype": str(inputs.dtype), "shape": list(inputs.shape)}

        def parse(reply: Any) -> np.ndarray[Any, Any]:
            reply = self._fetched(reply, MAX_OUTPUT_BYTES)
            found = answers.first_array(reply, len(inputs))
            all_bytes = max(answers.all_bytes(reply), inputs.nbytes)
            now = (-(-all_bytes // len(inputs)), str(found.dtype), found.shape[1:])
            if self._outputs.setdefault(model.key, now)[1:] != now[1:]:
                raise Nonsense(f"outputs of {now[1:]} after others of {self._outputs[model.key]}")
            return found

        return self._with_retries(
            "infer",
            [model],
            {"model": model.key, **about},
            blobs={digest: data},
            extra_s=len(inputs) * 1.0,
            parse=parse,
        )

    def engine(self, model: OnnxModel) -> Engine:
        """The engine as built on the device, with its audit; raises CandidateError."""
        return self._with_retries(
            "engine",
            [model],
            {"model": model.key},
            parse=lambda reply: answers.engine(self._fetched(reply, MAX_ENGINE_BYTES)),
        )

    def energy(self, model: OnnxModel, *, seconds: float) -> dict[str, Any] | None:
        """Energy of one inference over a sustained loop, or None where there are no rails.

        Returns:
            energy_mj per inference; mean_mw; idle_mw before the load, None where it could not be
            read; rails: names of those that were summed; samples, runs, source.
        """
        return self._with_retries(
            "energy",
            [model],
            {"model": model.key, "seconds": seconds},
            extra_s=2 * seconds + IDLE_S,
            parse=answers.energy,
        )

    def copies(self, model: OnnxModel) -> dict[str, Any] | None:
        """What copying costs; None where nothing is copied. Raises CandidateError.

        Returns:
            with_copies_ms: inputs to the device, one run, outputs back; without_copies_ms: the
            run alone; copied_bytes: in both directions.
        """
        return self._with_retries(
            "copies", [model], {"model": model.key}, extra_s=TOOL_S, parse=answers.copies
        )

    def launch_floor(self, model: OnnxModel) -> dict[str, Any] | None:
        """What starting an inference costs; None where nothing is launched. Raises CandidateError.

        Returns:
            single_ms: a run that is launched alone; in_graph_ms: one of ``runs_per_graph`` in one
            graph, None where there are none; host_share: host's time over the device's.
        """
        return self._with_retries(
            "launch_floor",
            [model],
            {"model": model.key},
            extra_s=TOOL_S,
            parse=answers.launch_floor,
        )

    def layer_profile(self, model: OnnxModel) -> dict[str, Any]:
        """The engine's layers and what their changes of layout cost; raises CandidateError.

        Returns:
            layers; reformats: how many only change a layout or type; reformat_share: of the
            time, in [0, 1]; source.
        """
        return self._with_retries(
            "layer_profile",
            [model],
            {"model": model.key},
            extra_s=TOOL_S,
            parse=answers.layer_profile,
        )

    def cross_check(self, model: OnnxModel) -> dict[str, Any]:
        """The engine as timed by the vendor's own tool; raises CandidateError with why not."""
        return self._with_retries(
            "cross_check", [model], {"model": model.key}, extra_s=TOOL_S, parse=answers.cross_check
        )

    def forget(self, model: OnnxModel) -> None:
        """Free the device's copy of a model."""
        self._outputs.pop(model.key, None)
        if model.key in self._present:
            self._present.discard(model.key)
            with contextlib.suppress(WorkerLost):
                self._request("forget", {"digest": model.key}, self.profile.call_timeout_s)

    @contextlib.contextmanager
    def holding(self, model: OnnxModel) -> Iterator[OnnxModel]:
        """The model while it is asked about; the device forgets it at the end, also after an error.

        One whose forgetting fails with the line is gone anyway: the next worker has no models.
        """
        try:
            yield model
        finally:
            self.forget(model)

    # -------------------------------------------------------------------------- the worker

    def _with_retries(
        self,
        verb: str,
        models: list[OnnxModel],
        request: dict[str, Any],
        *,
        blobs: dict[str, memoryview] | None = None,
        extra_s: float = 0.0,
        parse: Callable[[Any], Parsed],
    ) -> Parsed:
        timeout_s = extra_s + (
            self.profile.build_timeout_s if verb in BUILDING else self.profile.call_timeout_s
        )
        reason = ""
        token = self._new_token()
        for attempt in range(ATTEMPTS):
            try:
                for model in models:
                    self._put_model(model)
                for digest, data in (blobs or {}).items():
                    self._open_exchange().put(digest, data)
                result = parse(self._request(verb, request, timeout_s, token=token))
            except Nonsense as error:
                token = self._new_token()  # what was kept under the old one is no good
                reason = self._lost(error)
            except WorkerLost as error:
                reason = self._lost(error)
            else:
                self._losses = 0
                if attempt:
                    self._drop(token)
                return result
        stage = {"compare": "run", "infer": "score"}.get(verb, verb)
        raise LostTwice(stage, f"the worker was lost {ATTEMPTS} times: {reason}")

    def _lost(self, error: WorkerLost) -> str:
        """Replace the worker; give up when this target keeps losing them. Returns the reason."""
        self._losses += 1
        if self._losses >= MAX_CONSECUTIVE_LOSSES:
            raise TargetError(
                f"target {self.profile.name!r} lost its worker {self._losses} times in a "
                f"row; the last time: {error}",
                f"hwloop target check {self.profile.name}",
            ) from error
        self._stop()
        self._start()
        return str(error)

    def _new_token(self) -> str:
        self._work += 1
        return f"{self._name}-{self._work}"

    def _put_model(self, model: OnnxModel) -> None:
        if model.key in self._present:
            return
        self._open_exchange().put(model.digest, model.data)
        about = {"digest": model.digest, "model": model.key, "hints": model.hints}
        self._request("put_model", about, self.profile.call_timeout_s)
        self._present.add(model.key)

    def _fetched(self, reply: Any, limit_bytes: int) -> dict[str, Any]:
        return self._open_exchange().fetched(reply, limit_bytes=limit_bytes)

    def _drop(self, token: str) -> None:
        with contextlib.suppress(WorkerLost, CandidateError):
            self._request("drop", {"done": token}, self.profile.call_timeout_s)

    def _open_exchange(self) -> Exchange:
        if self._exchange is None:
            raise WorkerLost("the target session is not open")
        return self._exchange

    def _request(
        self, verb: str, body: dict[str, Any], timeout_s: float, *, token: str = ""
    ) -> Any:
        return self._open_exchange().request(verb, body, timeout_s, token=token)

    def _start(self) -> None:
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

    def _open(self) -> None:
        """One worker, known to be the right one. Raises LinkLost or WorkerLost: it was lost."""
        # The builder's own deadline comes first, because it says what took so long.
        build_timeout_s = max(self.profile.build_timeout_s - BUILD_GRACE_S, 10.0)
        # What the first worker derived from its machine's state holds for the whole session.
        fixed = self._hello.fixed if self._hello else {}
        options = {
            "runtime": self.profile.runtime,
            "settings": {**fixed, **self.profile.settings, "build_timeout_s": build_timeout_s},
            "lock": self.locks,
            "supersedes": self._lost_pids,
            "remote": self.profile.transport == "ssh",
        }
        self._link = open_link(self.profile, options, self._limits)
        self._exchange = Exchange(self._link, timeout_s=self.profile.call_timeout_s)
        self._present = set()
        self._pid = self._link.pid
        try:
            hello = answers.hello(self._link.hello)
            self._pid = hello.pid
            value = self._request("fingerprint", {}, FINGERPRINT_TIMEOUT_S)
            found = Fingerprint.from_json(value)
        except (Nonsense, CandidateError, KeyError, TypeError, ValueError) as error:
            self._stop()
            raise TargetError(
                f"target {self.profile.name!r} cannot say what it is: {error}",
                f"hwloop doctor --target {self.profile.name}",
            ) from error
        except WorkerLost:
            self._stop()
            raise
        if self._fingerprint is not None and found != self._fingerprint:
            self._stop()
            raise TargetError(
                f"target {self.profile.name!r} came back as another machine: {found}",
                "restore its state, or start a new run folder",
            )
        self._fingerprint = found
        self._hello = self._hello or hello

    def _stop(self) -> None:
        """End the worker now; one that cannot be reached ends itself within seconds."""
        if self._link is not None:
            self._link.close()
            self._note_lost(self._pid)
            self._link = self._exchange = None

    def _note_lost(self, pid: int) -> None:
        """So that a successor may end it, should it still hold the board."""
        self._lost_pids = [*self._lost_pids[-7:], pid]


def _reach(profile: TargetProfile, *, was_started: bool) -> str:
    if was_started:
        return f"hwloop doctor --target {profile.name}"
    if profile.host is None:
        return f"hwloop target check {profile.name}"
    destination = profile.host.destination
    return f"ssh {destination}   must work without a question; or name it: --host user@board"
