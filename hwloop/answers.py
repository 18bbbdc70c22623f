"""What a worker answers, checked before it is believed: it may be broken, or not ours at all."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwloop.errors import CandidateError, TargetError
from hwloop.records import Measurement

MAX_SAMPLES = 100_000
MAX_LATENCY_MS = 1e7


class LostTwice(CandidateError):
    """One candidate lost two workers: its own fault or the target's, nobody can tell."""


class WorkerLost(TargetError):
    """The worker died, did not answer in time, or answered what cannot be true."""


class Nonsense(WorkerLost):
    """An answer that cannot be true: the work has to be done again, not its reply repeated."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Engine:
    """A built engine: valid for the device and runtime version that built it, and no other.

    Attributes:
        audit: what the runtime says of it: precisions, copies, sparse kernels.
    """

    data: bytes
    sha256: str
    audit: dict[str, Any]


def candidate_error(error: Any) -> CandidateError:
    try:
        return CandidateError(str(error["stage"])[:40], str(error["message"])[:2000])
    except (KeyError, TypeError) as problem:
        raise Nonsense(f"an error that is none: {problem}") from problem


def build_s(reply: Any) -> float:
    return _positive(reply, "build_s")


def cross_check(reply: Any) -> dict[str, Any]:
    """What trtexec found; its milliseconds are compared with ours, the rest is shown."""
    _positive(reply, "trtexec_ms")
    return dict(reply)


def _positive(reply: Any, name: str) -> float:
    try:
        value = float(reply[name])
    except (KeyError, TypeError, ValueError) as error:
        raise Nonsense(f"{name} is missing: {error}") from error
    if not 0 <= value < math.inf:
        raise Nonsense(f"{name} is {value}")
    return value


def energy(reply: Any) -> dict[str, Any] | None:
    if reply is None:
        return None
    try:
        found = {name: float(reply[name]) for name in ("energy_mj", "mean_mw", "samples", "runs")}
        if not all(0 < value < math.inf for value in found.values()):
            raise ValueError("an energy is above zero and finite")
        return {**found, "source": str(reply["source"])[:80]}
    except (KeyError, TypeError, ValueError) as error:
        raise Nonsense(f"the energy is none: {error}") from error


def engine(reply: Any) -> Engine:
    try:
        data, audit = bytes(reply["data"]), dict(reply["audit"])
        if hashlib.sha256(data).hexdigest() != reply["sha256"]:
            raise ValueError("its SHA-256 is another")
        return Engine(data=data, sha256=str(reply["sha256"]), audit=audit)
    except (KeyError, TypeError, ValueError) as error:
        raise Nonsense(f"the engine is none: {error}") from error


def measurement(reply: Any, reference_latency_ms: float) -> Measurement:
    try:
        samples = tuple(float(value) for value in reply["samples_ms"])
        reference = tuple(float(value) for value in reply["reference_ms"])
        if len(samples) > MAX_SAMPLES or max(samples, default=0.0) > MAX_LATENCY_MS:
            raise ValueError("more or longer samples than can be true")
        heat = reply["temperature_c"]
        overhead = reply.get("launch_overhead_ms")
        refused = reply.get("graph_refused")
        return Measurement(
            samples_ms=samples,
            reference_ms=reference,
            reference_latency_ms=reference_latency_ms or float(np.median(reference)),
            warmup_count=int(reply["warmup_count"]),
            stopped=str(reply["stopped"])[:20],
            temperature_c=None if heat is None else float(heat),
            launch_overhead_ms=None if overhead is None else float(overhead),
            unstable=(f"no CUDA graph: {str(refused)[:200]}",) if refused else (),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Nonsense(f"the measurement is not one: {error}") from error


def first_array(reply: Any, count: int) -> np.ndarray[Any, Any]:
    """The first of the outputs, with one row for each of ``count`` inputs."""
    try:
        first = reply[0]
        found = np.frombuffer(first["data"], dtype=first["dtype"]).reshape(first["shape"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Nonsense(f"the outputs are not an array: {error}") from error
    if found.dtype.kind not in "fiu" or len(found) != count:
        raise Nonsense(f"{len(found)} outputs of {found.dtype} for {count} inputs")
    return found
