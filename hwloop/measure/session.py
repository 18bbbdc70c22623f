"""The host side of a device: what can be asked of it while a session with it is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from hwloop.findings import Fingerprint, Measurement, Protocol
from hwloop.measure import answers
from hwloop.measure.answers import Engine
from hwloop.measure.chunks import Chunks
from hwloop.measure.link import Limits
from hwloop.measure.profile import TargetProfile
from hwloop.measure.retries import Retries
from hwloop.measure.worker import SessionWorker
from hwloop.parsing import to_json
from hwloop.runtimes.graph import OnnxModel

MAX_ENGINE_BYTES = 4 << 30
TOOL_S = 60.0
IDLE_S = 10.0


class DeviceSession:
    """A context manager: nothing touches the target before ``__enter__``.

    A request that loses the worker is repeated once with a new worker. A candidate that loses two
    workers is a CandidateError; a target that cannot be brought back, or keeps losing workers
    whatever it is given, is a TargetError.

    Args:
        limits: of silence, where they are not those of the profile's transport.
        held: another session of ours keeps others from the machine, and waits meanwhile.
    """

    def __init__(
        self, profile: TargetProfile, *, limits: Limits | None = None, held: bool = False
    ) -> None:
        self._worker = SessionWorker(profile, limits=limits, held=held)
        self._retries = Retries(self._worker)
        self._chunks = Chunks(self._retries)

    def __enter__(self) -> DeviceSession:
        self._worker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.stop()

    @property
    def profile(self) -> TargetProfile:
        """Of the target that this is a session with."""
        return self._worker.profile

    @property
    def fingerprint(self) -> Fingerprint:
        """What was found on the device; read once per session."""
        return self._worker.fingerprint

    @property
    def import_s(self) -> dict[str, float]:
        """Seconds that each package took to be imported there, when the session was opened."""
        return self._worker.hello.import_s

    @property
    def capabilities(self) -> frozenset[str]:
        """What its worker can do that not every one can; see hwloop.device.runtime."""
        return self._worker.hello.capabilities

    @property
    def cache_bytes(self) -> int | None:
        """Of the cache beyond which weights are slow to read; None where nobody knows."""
        return self._worker.hello.cache_bytes

    @property
    def locks(self) -> bool:
        """Whether this kind of session keeps others from measuring on the same machine."""
        return self._worker.locks

    @property
    def isa(self) -> str:
        return dict(self.fingerprint.settings).get("isa", "")

    def state(self) -> dict[str, Any]:
        """Clocks, load and heat as the worker reads them now."""
        found: dict[str, Any] = self._worker.request("state", {}, self.profile.call_timeout_s)
        return found

    def recordings(self) -> dict[str, Any]:
        """The machine's own files, tegrastats lines and names; see device/recordings.py."""
        timeout_s = self.profile.call_timeout_s
        found: dict[str, Any] = self._worker.request("recordings", {}, timeout_s)
        return found

    def build(self, model: OnnxModel) -> float:
        """Open the engine on the device: seconds it took. Raises CandidateError."""
        return self._retries.ask("build", model, parse=answers.build_s)

    def measure(
        self,
        model: OnnxModel,
        reference: OnnxModel,
        *,
        protocol: Protocol,
        reference_latency_ms: float,
    ) -> Measurement:
        """Time ``model`` interleaved with ``reference``; raises CandidateError or TargetError."""
        return self._retries.ask(
            "compare",
            model,
            about={"reference": reference.key, "protocol": to_json(protocol)},
            beside=[reference],
            extra_s=protocol.time_limit_s + protocol.warmup_s,
            parse=lambda reply: answers.measurement(reply, reference_latency_ms),
        )

    def infer(self, model: OnnxModel, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The deployed engine's first output for every input, stacked; raises CandidateError.

        They go in chunks of bounded size; who has many inputs asks for a chunk at a time as well.
        """
        found = list(self._chunks.inferred(model, inputs))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def engine(self, model: OnnxModel) -> Engine:
        """The engine as built on the device, with its audit; raises CandidateError."""
        return self._retries.ask(
            "engine",
            model,
            parse=lambda reply: answers.engine(
                self._worker.fetched(reply, limit_bytes=MAX_ENGINE_BYTES)
            ),
        )

    def energy(self, model: OnnxModel, *, seconds: float) -> dict[str, Any] | None:
        """Energy of one inference over a sustained loop, or None where there are no rails.

        Returns:
            energy_mj per inference; mean_mw; idle_mw before the load, None where it could not be
            read; rails: names of those that were summed; samples, runs, source.
        """
        return self._retries.ask(
            "energy",
            model,
            about={"seconds": seconds},
            extra_s=2 * seconds + IDLE_S,
            parse=answers.energy,
        )

    def copies(self, model: OnnxModel) -> dict[str, Any] | None:
        """What copying costs; None where nothing is copied. Raises CandidateError.

        Returns:
            with_copies_ms: inputs to the device, one run, outputs back; without_copies_ms: the
            run alone; copied_bytes: in both directions.
        """
        return self._retries.ask("copies", model, extra_s=TOOL_S, parse=answers.copies)

    def launch_floor(self, model: OnnxModel) -> dict[str, Any] | None:
        """What starting an inference costs; None where nothing is launched. Raises CandidateError.

        Returns:
            single_ms: a run that is launched alone; in_graph_ms: one of ``runs_per_graph`` in one
            graph, None where there are none; host_share: host's time over the device's.
        """
        return self._retries.ask(
            "launch_floor",
            model,
            extra_s=TOOL_S,
            parse=answers.launch_floor,
        )

    def layer_profile(self, model: OnnxModel) -> dict[str, Any]:
        """The engine's layers and what their changes of layout cost; raises CandidateError.

        Returns:
            layers; reformats: how many only change a layout or type; reformat_share: of the
            time, in [0, 1]; source.
        """
        return self._retries.ask(
            "layer_profile",
            model,
            extra_s=TOOL_S,
            parse=answers.layer_profile,
        )

    def cross_check(self, model: OnnxModel) -> dict[str, Any]:
        """The engine as timed by the vendor's own tool; raises CandidateError with why not."""
        return self._retries.ask("cross_check", model, extra_s=TOOL_S, parse=answers.cross_check)

    @contextmanager
    def holding(self, model: OnnxModel) -> Iterator[OnnxModel]:
        """The model while it is asked about; the device forgets it at the end, also after an error.

        Where the line is lost at the end, it is gone anyway: the next worker has no models. Nothing
        is asked of the device after an interruption: it may be at work, and the session ends.
        """
        try:
            yield model
        except Exception:
            self.forget(model)
            raise
        self.forget(model)

    def forget(self, model: OnnxModel) -> None:
        """Free the device's copy of a model."""
        self._chunks.outputs.pop(model.key, None)
        self._worker.forget(model)
