"""What a worker answers, checked before it is believed: it may be broken, or not ours at all."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwloop import stats
from hwloop.device.harness import ENDS
from hwloop.device.runtime import CAPABILITIES
from hwloop.errors import CandidateError, TargetError
from hwloop.findings import CLOCKS, HOST_BOUND, HOST_BOUND_SHARE, MAX_SAMPLES, Measurement
from hwloop.measure import plausible
from hwloop.measure.plausible import MAX_LATENCY_MS, WRONG

DTYPES = frozenset(
    [f"float{bits}" for bits in (16, 32, 64)]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)


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


@dataclass(frozen=True, kw_only=True)
class Hello:
    """A worker's first word.

    Attributes:
        fixed: settings that it derived from the state of its machine when it started.
        import_s: seconds that its imports took, by package.
        capabilities: what it can do that not every runtime can; words of hwloop.device.runtime.
        cache_bytes: of the cache beyond which weights are slow to read; None where nobody knows.
    """

    pid: int
    fixed: dict[str, float | None]
    import_s: dict[str, float]
    capabilities: frozenset[str]
    cache_bytes: int | None


def hello(reply: Any) -> Hello:
    try:
        found = reply["result"]
        fixed = {
            name: plausible.number_or_none(value)
            for name, value in plausible.named(found["fixed"]).items()
        }
        return Hello(
            pid=plausible.count(found["pid"]),
            fixed=fixed,
            import_s={
                name: plausible.amount(value)
                for name, value in plausible.named(found["import_s"]).items()
            },
            capabilities=CAPABILITIES & set(plausible.texts(found["capabilities"])),
            cache_bytes=plausible.count_or_none(found.get("cache_bytes")),
        )
    except WRONG as error:
        raise Nonsense(f"the first word is none: {error}") from error


def candidate_error(error: Any) -> CandidateError:
    try:
        return CandidateError(str(error["stage"])[:40], str(error["message"])[:2000])
    except WRONG as problem:
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
    except WRONG as error:
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
        idle = reply.get("idle_mw")
        return {
            **found,
            "idle_mw": None if idle is None else plausible.amount(idle),
            "rails": plausible.texts(reply.get("rails", [])),
            "source": str(reply["source"])[:80],
        }
    except WRONG as error:
        raise Nonsense(f"the energy is none: {error}") from error


def copies(reply: Any) -> dict[str, Any] | None:
    if reply is None:
        return None
    try:
        return {
            "with_copies_ms": plausible.latency(reply["with_copies_ms"]),
            "without_copies_ms": plausible.latency(reply["without_copies_ms"]),
            "copied_bytes": plausible.count(reply["copied_bytes"]),
        }
    except WRONG as error:
        raise Nonsense(f"the copies are none: {error}") from error


def launch_floor(reply: Any) -> dict[str, Any] | None:
    if reply is None:
        return None
    try:
        in_graph_ms, host_share = reply["in_graph_ms"], reply["host_share"]
        return {
            "single_ms": plausible.latency(reply["single_ms"]),
            "in_graph_ms": None if in_graph_ms is None else plausible.latency(in_graph_ms),
            "runs_per_graph": plausible.count(reply["runs_per_graph"]),
            "host_share": None if host_share is None else plausible.amount(host_share),
        }
    except WRONG as error:
        raise Nonsense(f"the launch floor is none: {error}") from error


def layer_profile(reply: Any) -> dict[str, Any]:
    try:
        share = plausible.amount(reply["reformat_share"])
        if share > 1:
            raise ValueError(f"a share of {share}")
        return {
            "layers": plausible.count(reply["layers"]),
            "reformats": plausible.count(reply["reformats"]),
            "reformat_share": share,
            "source": str(reply["source"])[:80],
        }
    except WRONG as error:
        raise Nonsense(f"the profile of the layers is none: {error}") from error


def engine(reply: Any) -> Engine:
    try:
        data, audit = bytes(reply["data"]), dict(reply["audit"])
        if hashlib.sha256(data).hexdigest() != reply["sha256"]:
            raise ValueError("its SHA-256 is another")
        return Engine(data=data, sha256=str(reply["sha256"]), audit=audit)
    except WRONG as error:
        raise Nonsense(f"the engine is none: {error}") from error


def measurement(reply: Any, reference_latency_ms: float) -> Measurement:
    try:
        samples = tuple(float(value) for value in reply["samples_ms"])
        reference = tuple(float(value) for value in reply["reference_ms"])
        if len(samples) > MAX_SAMPLES or max(samples, default=0.0) > MAX_LATENCY_MS:
            raise ValueError("more or longer samples than can be true")
        heat = reply["temperature_c"]
        overhead = reply.get("launch_overhead_ms")
        reformats = reply.get("reformats")
        rounds = _rounds(reply["rounds"], len(reference))
        if reply["clock"] not in CLOCKS:
            raise ValueError(f"milliseconds of the clock {str(reply['clock'])[:40]!r}")
        if reply["stopped"] not in ENDS:
            raise ValueError(f"it stopped for {str(reply['stopped'])[:40]!r}")
        quiet_ms = stats.median(stats.quiet_times(reference, rounds)) if reference else 0.0
        return Measurement(
            samples_ms=samples,
            reference_ms=reference,
            reference_latency_ms=reference_latency_ms or quiet_ms,
            rounds=rounds,
            clock=reply["clock"],
            warmup_count=plausible.count(reply["warmup_count"]),
            stopped=reply["stopped"],
            temperature_c=None if heat is None else float(heat),
            launch_overhead_ms=None if overhead is None else float(overhead),
            reformats=None if reformats is None else plausible.count(reformats),
            interrupted_share=plausible.share_or_none(reply.get("interrupted_share")),
            core_taken_share=plausible.share_or_none(reply.get("core_taken_share")),
            other_cores_busy_share=plausible.share_or_none(reply.get("other_cores_busy_share")),
            unstable=_reasons(reply),
        )
    except WRONG as error:
        raise Nonsense(f"the measurement is not one: {error}") from error


def _rounds(values: Any, count: int) -> tuple[int, ...]:
    """How many samples each round has: at least one, and ``count`` in all."""
    found = tuple(plausible.count(value) for value in values)
    if 0 in found or sum(found) != count:
        raise ValueError(f"rounds of {str(found)[:60]} samples for {count}")
    return found


def _reasons(reply: Any) -> tuple[str, ...]:
    """What the device itself says against a measurement."""
    found = []
    refused, share = reply.get("graph_refused"), reply.get("host_share")
    if refused:
        found.append(f"no CUDA graph: {str(refused)[:200]}")
    if share is not None and plausible.amount(share) > HOST_BOUND_SHARE:
        found.append(
            f"{HOST_BOUND}: launching took {float(share):.0%} of the time, so the figure is the "
            "host's, not the device's"
        )
    return tuple(found)


def all_bytes(reply: dict[str, Any]) -> int:
    """Size of all outputs of a request, of which one is in the reply."""
    try:
        return plausible.count(reply["all_bytes"])
    except WRONG as error:
        raise Nonsense(f"the outputs have no size: {error}") from error


def first_array(reply: dict[str, Any], count: int) -> np.ndarray[Any, Any]:
    """The first of the outputs, with one row for each of ``count`` inputs."""
    try:
        if reply["dtype"] not in DTYPES:
            raise ValueError(f"numbers of the type {str(reply['dtype'])[:40]!r}")
        found = np.frombuffer(reply["data"], dtype=reply["dtype"]).reshape(reply["shape"])
    except WRONG as error:
        raise Nonsense(f"the outputs are not an array: {error}") from error
    if found.ndim == 0 or len(found) != count:
        raise Nonsense(f"outputs of {found.dtype}, shaped {found.shape}, for {count} inputs")
    return found
