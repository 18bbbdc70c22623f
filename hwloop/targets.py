"""The host side of a device: a session with the worker process, with deadlines and retries.

The worker runs in its own process also on this machine, so that a crash of the runtime costs one
candidate and not the search. A lost one is replaced, on a board by calling it again for a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from hwloop import answers
from hwloop.answers import Engine, LostTwice, Nonsense, WorkerLost
from hwloop.errors import CandidateError, TargetError
from hwloop.link import Link, LinkLost, open_link
from hwloop.profile import TargetProfile
from hwloop.records import Fingerprint, LayerConfig, Measurement, Protocol, to_json

Parsed = TypeVar("Parsed")

FINGERPRINT_TIMEOUT_S = 30.0
BUILD_GRACE_S = 30.0
ATTEMPTS = 2
BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
PART_BYTES = 256 << 10
"""A blob is sent in parts, so that the pulse gets through between them on a slow link."""

MAX_CONSECUTIVE_LOSSES = 6
BUILDING = ("build", "engine", "compare", "infer", "energy", "cross_check")


class Model:
    """An ONNX file on its way to a device, addressed by its content.

    Attributes:
        data: the file's bytes.
        configs: the rows it consists of; only the simulated device reads them.
        row: it is a row of the table: its ends may have any layout.
    """

    def __init__(
        self, data: bytes, configs: tuple[LayerConfig, ...] = (), *, row: bool = False
    ) -> None:
        self.data = data
        self.row = row
        self.configs = configs
        self.digest = hashlib.sha256(data).hexdigest()


class DeviceSession:
    """A context manager: nothing touches the target before ``__enter__``.

    A request that loses the worker is repeated once with a new worker. A candidate that loses two
    workers is a CandidateError; a target that cannot be brought back, or keeps losing workers
    whatever it is given, is a TargetError.
    """

    def __init__(self, profile: TargetProfile) -> None:
        self.profile = profile
        self._link: Link | None = None
        self._pid = 0
        self._lost_pids: list[int] = []
        self._name = uuid.uuid4().hex
        self._work = 0
        self._request_id = 0
        self._present: set[str] = set()
        self._losses = 0
        self._fingerprint: Fingerprint | None = None

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
    def locks(self) -> bool:
        """Whether this kind of session keeps others from measuring on the same machine."""
        return self.profile.transport == "ssh" or self.profile.runtime == "tensorrt"

    @property
    def isa(self) -> str:
        return dict(self.fingerprint.settings).get("isa", "")

    def state(self) -> dict[str, Any]:
        """Clocks, load and heat as the worker reads them now."""
        found: dict[str, Any] = self._request("state", {}, self.profile.call_timeout_s)
        return found

    def build(self, model: Model) -> float:
        """Open the engine on the device: seconds it took. Raises CandidateError."""
        request = {"model": model.digest}
        return self._with_retries("build", [model], request, parse=answers.build_s)

    def measure(
        self,
        model: Model,
        reference: Model,
        *,
        protocol: Protocol,
        reference_latency_ms: float,
    ) -> Measurement:
        """Time ``model`` interleaved with ``reference``; raises CandidateError or TargetError."""
        request = {
            "model": model.digest,
            "reference": reference.digest,
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

    def infer(self, model: Model, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The deployed engine's first output for every input, stacked; raises CandidateError."""
        digest = hashlib.sha256(inputs.tobytes()).hexdigest()
        return self._with_retries(
            "infer",
            [model],
            {"model": model.digest, "inputs": digest},
            arrays={digest: inputs},
            extra_s=len(inputs) * 1.0,
            parse=lambda reply: answers.first_array(reply, len(inputs)),
        )

    def engine(self, model: Model) -> Engine:
        """The engine as built on the device, with its audit; raises CandidateError."""
        return self._with_retries("engine", [model], {"model": model.digest}, parse=answers.engine)

    def energy(self, model: Model, *, seconds: float) -> dict[str, Any] | None:
        """Energy of one inference over a sustained loop, or None where there are no rails.

        Returns:
            energy_mj per inference, mean_mw, samples, runs, source.
        """
        return self._with_retries(
            "energy",
            [model],
            {"model": model.digest, "seconds": seconds},
            extra_s=2 * seconds,
            parse=answers.energy,
        )

    def copies(self, model: Model) -> dict[str, Any] | None:
        """One inference with its copies to and from the device, or None where nothing is copied."""
        return None

    def cross_check(self, model: Model) -> dict[str, Any]:
        """The engine as timed by the vendor's own tool; raises CandidateError with why not."""
        request = {"model": model.digest}
        return self._with_retries(
            "cross_check", [model], request, extra_s=60.0, parse=answers.cross_check
        )

    def forget(self, model: Model) -> None:
        """Free the device's copy of a model."""
        if model.digest in self._present:
            self._present.discard(model.digest)
            with contextlib.suppress(WorkerLost):
                self._request("forget", {"digest": model.digest}, self.profile.call_timeout_s)

    # -------------------------------------------------------------------------- the worker

    def _with_retries(
        self,
        verb: str,
        models: list[Model],
        request: dict[str, Any],
        *,
        arrays: dict[str, np.ndarray[Any, Any]] | None = None,
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
                for digest, array in (arrays or {}).items():
                    self._put_array(digest, array)
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

    def _put_model(self, model: Model) -> None:
        hints: dict[str, Any] = {"configs": [to_json(config) for config in model.configs]}
        if any(config.precision == "fp16" for config in model.configs):
            hints["precision"] = "fp16"  # an engine without any would not be what was asked for
        self._put("put_model", model.digest, model.data, {"hints": hints})

    def _put_array(self, digest: str, array: np.ndarray[Any, Any]) -> None:
        about = {"dtype": str(array.dtype), "shape": list(array.shape)}
        self._put("put_array", digest, np.ascontiguousarray(array).tobytes(), about)

    def _put(self, verb: str, digest: str, data: bytes, about: dict[str, Any]) -> None:
        if digest in self._present:
            return
        for offset in range(0, max(len(data), 1), PART_BYTES):
            part = data[offset : offset + PART_BYTES]
            self._send({"id": 0, "verb": "put", "digest": digest, "offset": offset, "data": part})
        self._request(verb, {"digest": digest, **about}, self.profile.call_timeout_s)
        self._present.add(digest)

    def _drop(self, token: str) -> None:
        with contextlib.suppress(WorkerLost, CandidateError):
            self._request("drop", {"done": token}, self.profile.call_timeout_s)

    def _send(self, message: dict[str, Any]) -> None:
        if self._link is None:
            raise WorkerLost("the target session is not open")
        try:
            self._link.send(message)
        except LinkLost as error:
            raise WorkerLost(f"{error} before {message['verb']!r}") from error

    def _request(
        self, verb: str, body: dict[str, Any], timeout_s: float, *, token: str = ""
    ) -> Any:
        self._request_id += 1
        self._send({"id": self._request_id, "token": token, "verb": verb, **body})
        try:
            reply = self._link.receive(timeout_s) if self._link else None
        except LinkLost as error:
            raise WorkerLost(f"{error} during {verb!r}") from error
        if not isinstance(reply, dict) or reply.get("id") != self._request_id:
            raise Nonsense(f"the answer to {verb!r} does not match the request")
        if "error" in reply:
            raise answers.candidate_error(reply["error"])
        if "result" not in reply:
            raise Nonsense(f"the answer to {verb!r} has no result")
        return reply["result"]

    def _start(self) -> None:
        """Open the line and read the fingerprint; a board is called again for a while.

        Raises:
            TargetError: it does not answer, refuses, or is another machine than before.
            EnvironmentProblem: something is missing that has to be installed.
        """
        # The builder's own deadline comes first, because it says what took so long.
        build_timeout_s = max(self.profile.build_timeout_s - BUILD_GRACE_S, 10.0)
        options = {
            "runtime": self.profile.runtime,
            "settings": {**self.profile.settings, "build_timeout_s": build_timeout_s},
            "lock": self.locks,
            "supersedes": self._lost_pids,
            "remote": self.profile.transport == "ssh",
        }
        self._link = self._called(options)
        self._pid = int(self._link.hello["result"]["pid"])
        self._present = set()
        try:
            value = self._request("fingerprint", {}, FINGERPRINT_TIMEOUT_S)
            found = Fingerprint.from_json(value)
        except (WorkerLost, CandidateError, KeyError, TypeError, ValueError) as error:
            self._stop()
            raise TargetError(
                f"target {self.profile.name!r} cannot say what it is: {error}",
                f"hwloop doctor --target {self.profile.name}",
            ) from error
        if self._fingerprint is not None and found != self._fingerprint:
            self._stop()
            raise TargetError(
                f"target {self.profile.name!r} came back as another machine: {found}",
                "restore its state, or start a new run folder",
            )
        self._fingerprint = found

    def _called(self, options: dict[str, Any]) -> Link:
        """The open line. Only a board that answered before is called again and again."""
        patience_s = self.profile.reconnect_s if self._fingerprint is not None else 0.0
        deadline = time.monotonic() + patience_s
        attempt = 0
        while True:
            try:
                return open_link(self.profile, options)
            except LinkLost as error:
                if time.monotonic() >= deadline:
                    raise TargetError(
                        f"target {self.profile.name!r}: {error}", _reach(self.profile)
                    ) from error
            time.sleep(BACK_OFF_S[min(attempt, len(BACK_OFF_S) - 1)])
            attempt += 1

    def _stop(self) -> None:
        """End the worker now; one that cannot be reached ends itself within seconds."""
        if self._link is not None:
            self._link.close()
            self._lost_pids = [*self._lost_pids[-7:], self._pid]
            self._link = None


def _reach(profile: TargetProfile) -> str:
    if profile.host is None:
        return f"hwloop target check {profile.name}"
    destination = profile.host.destination
    return f"ssh {destination}   must work without a question; or name it: --host user@board"
