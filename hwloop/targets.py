"""The host side of a device: a session with the worker process, with deadlines and retries.

The worker runs in its own process also on this machine, so that a crash of the runtime costs one
candidate and not the search. Its code is sent when the session starts (execnet, MIT).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import execnet
import numpy as np

from hwloop.errors import CandidateError, EnvironmentProblem, TargetError
from hwloop.profile import TargetProfile
from hwloop.records import Fingerprint, LayerConfig, Measurement, Protocol, to_json

Parsed = TypeVar("Parsed")

START_TIMEOUT_S = 30.0
ATTEMPTS = 2
MAX_CONSECUTIVE_LOSSES = 6
MAX_SAMPLES = 100_000
MAX_LATENCY_MS = 1e7
SENT_MODULES = ("__init__", "harness", "state", "ort", "fake", "serve")

_BOOTSTRAP = """
import importlib.abc, importlib.util, sys

sources, runtime, settings = channel.receive()

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
from hwloop.device.serve import serve
serve(channel, runtime, settings)
"""


class WorkerLost(TargetError):
    """The worker died, did not answer in time, or answered what cannot be true."""


class Model:
    """An ONNX file on its way to a device, addressed by its content.

    Attributes:
        data: the file's bytes.
        configs: the rows it consists of; only the simulated device reads them.
    """

    def __init__(self, data: bytes, configs: tuple[LayerConfig, ...] = ()) -> None:
        self.data = data
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
        self._group: Any = None
        self._channel: Any = None
        self._pid = 0
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
    def isa(self) -> str:
        return dict(self.fingerprint.settings).get("isa", "")

    def state(self) -> dict[str, Any]:
        """Clocks, load and heat as the worker reads them now."""
        found: dict[str, Any] = self._request("state", {}, self.profile.call_timeout_s)
        return found

    def build(self, model: Model) -> float:
        """Open the engine on the device: seconds it took. Raises CandidateError."""
        return self._with_retries(
            "build", [model], {"model": model.digest}, parse=lambda reply: float(reply["build_s"])
        )

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
            parse=lambda reply: _measurement(reply, reference_latency_ms),
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
            parse=lambda reply: _array(reply[0], len(inputs)),
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
            self.profile.build_timeout_s if verb == "build" else self.profile.call_timeout_s
        )
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                for model in models:
                    self._put_model(model)
                for digest, array in (arrays or {}).items():
                    self._put_array(digest, array)
                result = parse(self._request(verb, request, timeout_s))
            except WorkerLost as error:
                reason = str(error)
                self._losses += 1
                if self._losses >= MAX_CONSECUTIVE_LOSSES:
                    raise TargetError(
                        f"target {self.profile.name!r} lost its worker {self._losses} times in a "
                        f"row; the last time: {reason}",
                        f"hwloop target check {self.profile.name}",
                    ) from error
                self._stop()
                self._start()
            else:
                self._losses = 0
                return result
        stage = {"compare": "run", "infer": "score"}.get(verb, verb)
        raise CandidateError(stage, f"the worker was lost {ATTEMPTS} times: {reason}")

    def _put_model(self, model: Model) -> None:
        if model.digest in self._present:
            return
        body = {
            "digest": model.digest,
            "data": model.data,
            "hints": {"configs": [to_json(config) for config in model.configs]},
        }
        self._request("put_model", body, self.profile.call_timeout_s)
        self._present.add(model.digest)

    def _put_array(self, digest: str, array: np.ndarray[Any, Any]) -> None:
        if digest in self._present:
            return
        body = {
            "digest": digest,
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "data": np.ascontiguousarray(array).tobytes(),
        }
        self._request("put_array", body, self.profile.call_timeout_s)
        self._present.add(digest)

    def _request(self, verb: str, body: dict[str, Any], timeout_s: float) -> Any:
        self._request_id += 1
        try:
            self._channel.send({"id": self._request_id, "verb": verb, **body})
            reply = self._channel.receive(timeout_s)
        except self._channel.TimeoutError as error:
            raise WorkerLost(f"no answer to {verb!r} within {timeout_s:.0f} s") from error
        except (EOFError, OSError, self._channel.RemoteError) as error:
            raise WorkerLost(f"the worker died during {verb!r}") from error
        if not isinstance(reply, dict) or reply.get("id") != self._request_id:
            raise WorkerLost(f"the answer to {verb!r} does not match the request")
        if "error" in reply:
            raise CandidateError(str(reply["error"]["stage"]), str(reply["error"]["message"]))
        if "result" not in reply:
            raise WorkerLost(f"the answer to {verb!r} has no result")
        return reply["result"]

    def _start(self) -> None:
        sources = {"hwloop": ""}
        for name in SENT_MODULES:
            path = Path(__file__).parent / "device" / f"{name}.py"
            key = "hwloop.device" if name == "__init__" else f"hwloop.device.{name}"
            sources[key] = path.read_text(encoding="utf-8")
        try:
            self._group = execnet.Group()
            gateway = self._group.makegateway(f"popen//python={sys.executable}")
            self._channel = gateway.remote_exec(_BOOTSTRAP)
            self._channel.send((sources, self.profile.runtime, self.profile.settings))
            hello = self._channel.receive(START_TIMEOUT_S)
        except (EOFError, OSError, self._timeout_error()) as error:
            raise TargetError(
                f"target {self.profile.name!r}: the worker did not start: {error}",
                f"hwloop target check {self.profile.name}",
            ) from error
        if "error" in hello:
            raise EnvironmentProblem(
                f"target {self.profile.name!r}: {hello['error']['message']}",
                'pip install "hwloop[cpu]"',
            )
        self._pid = int(hello["result"]["pid"])
        self._present = set()
        found = Fingerprint.from_json(self._request("fingerprint", {}, START_TIMEOUT_S))
        if self._fingerprint is not None and found != self._fingerprint:
            raise TargetError(
                f"target {self.profile.name!r} came back as another machine: {found}",
                "restore its state, or start a new run folder",
            )
        self._fingerprint = found

    def _stop(self) -> None:
        """End the worker now: a hung one does not read its channel, so it is killed first."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._pid = 0
        if self._group is not None:
            self._group.terminate(timeout=1.0)
            self._group = None

    @staticmethod
    def _timeout_error() -> type[Exception]:
        error: type[Exception] = execnet.gateway_base.TimeoutError
        return error


def _measurement(reply: Any, reference_latency_ms: float) -> Measurement:
    try:
        samples = tuple(float(value) for value in reply["samples_ms"])
        reference = tuple(float(value) for value in reply["reference_ms"])
        if len(samples) > MAX_SAMPLES or max(samples, default=0.0) > MAX_LATENCY_MS:
            raise ValueError("more or longer samples than can be true")
        heat = reply["temperature_c"]
        return Measurement(
            samples_ms=samples,
            reference_ms=reference,
            reference_latency_ms=reference_latency_ms or float(np.median(reference)),
            warmup_count=int(reply["warmup_count"]),
            stopped=str(reply["stopped"])[:20],
            temperature_c=None if heat is None else float(heat),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerLost(f"the measurement is not one: {error}") from error


def _array(reply: Any, count: int) -> np.ndarray[Any, Any]:
    try:
        flat = np.frombuffer(reply["data"], dtype=reply["dtype"])
        array = flat.reshape(reply["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerLost(f"the outputs are not an array: {error}") from error
    if len(array) != count:
        raise WorkerLost(f"{len(array)} outputs for {count} inputs")
    return array
