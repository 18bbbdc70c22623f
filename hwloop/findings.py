"""What was found on a target, as frozen records: values in, values out, no I/O and no torch.

Units are part of the names: ``_ms`` milliseconds, ``_s`` seconds, ``_bytes``, ``_mhz``, ``_c``.
Everything here turns into JSON with :func:`hwloop.parsing.to_json`.
"""

from __future__ import annotations

import enum
import functools
import math
from dataclasses import dataclass
from typing import Any

from hwloop import stats
from hwloop.parsing import (
    A_COUNT,
    ANY_NUMBER,
    ANY_TEXT,
    Check,
    a_list,
    a_number,
    a_text,
    an_int,
    digest,
    one_of,
    optional,
    read_record,
)

NOISE_FLOOR = 0.01
"""Relative latency difference below which no change is claimed."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What was found on the target. Only its digest enters keys.

    Attributes:
        device: CPU or GPU model.
        runtime, runtime_version: e.g. onnxruntime 1.32.0.
        settings: everything else that changes a timing: threads, instruction set, governor,
            power mode, graph capture, harness and recipe version.
    """

    device: str
    runtime: str
    runtime_version: str
    settings: tuple[tuple[str, str], ...] = ()

    def digest(self) -> str:
        return digest(self)

    @staticmethod
    def from_json(value: Any) -> Fingerprint:
        """Inverse of :func:`hwloop.parsing.to_json`; raises ValueError on a wrong field."""
        words = dict.fromkeys(("device", "runtime", "runtime_version"), a_text())
        settings = a_list(a_list(a_text(), 2, 2), 0, 100)
        return read_record(Fingerprint, value, {**words, "settings": settings})


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a measurement is taken; see docs/measuring.md.

    Attributes:
        warmup_s: seconds of running both engines before the first sample, over all rounds.
        rounds: how often both engines are opened anew; samples are spread over the rounds.
        sample_s: a sample is as many back-to-back runs as fill this many seconds: one run where it
            takes that long. Short, so that much of what disturbs falls between samples.
        turn_s: seconds of samples of one engine before it is the other's turn.
        min_samples, max_samples: pairs of samples (candidate, reference).
        target_halfwidth: stop when the 95 % interval of the ratio is this narrow (0.01 = 1 %).
        time_limit_s: stop after this many seconds in any case.
    """

    warmup_s: float = 0.1
    rounds: int = 4
    sample_s: float = 0.00025
    turn_s: float = 0.008
    min_samples: int = 24
    max_samples: int = 4000
    target_halfwidth: float = 0.01
    time_limit_s: float = 3.0

    def digest(self) -> str:
        return digest(self)

    @staticmethod
    def from_json(value: Any) -> Protocol:
        """Inverse of :func:`hwloop.parsing.to_json`; raises ValueError on a wrong field."""
        numbers = ("warmup_s", "sample_s", "turn_s", "target_halfwidth", "time_limit_s")
        counts = ("rounds", "min_samples", "max_samples")
        checks = {**dict.fromkeys(numbers, a_number(0, 1e6)), **dict.fromkeys(counts, an_int(1))}
        return read_record(Protocol, value, checks)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All samples of one measurement, in the order taken; summaries are properties.

    Attributes:
        samples_ms: one value per sample: milliseconds per run of the candidate.
        reference_ms: the interleaved reference samples, same length.
        reference_latency_ms: the accepted latency of the reference, which ratios are scaled by.
        rounds: how many samples each round of fresh engines has; empty where it is not known.
        clock: what the milliseconds are of: wall, thread (what others run on the core in between is
            not in it) or gpu.
        warmup_count: runs before the first sample.
        stopped: what ended the sampling: precise, time or count.
        temperature_c: when the measurement ended, or None where there is no sensor.
        launch_overhead_ms: what a plain launch costs more than a replay of a CUDA graph.
        reformats: layers of the candidate's engine that only change a layout or a type, where the
            runtime tells.
        interrupted_share: of the samples, those in which others had the core for a while: of the
            engine that had more of them; None where it is not known.
        core_taken_share, other_cores_busy_share: what others used while it was timed, of the cores
            it was timed on and of all others, 0 to 1; None where it is not known.
        unstable: why the measurement should not be trusted; empty when it is stable.
    """

    samples_ms: tuple[float, ...]
    reference_ms: tuple[float, ...]
    reference_latency_ms: float
    rounds: tuple[int, ...] = ()
    clock: str = "wall"
    warmup_count: int = 0
    stopped: str = "precise"
    temperature_c: float | None = None
    launch_overhead_ms: float | None = None
    reformats: int | None = None
    interrupted_share: float | None = None
    core_taken_share: float | None = None
    other_cores_busy_share: float | None = None
    unstable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.samples_ms) != len(self.reference_ms) or not self.samples_ms:
            raise ValueError("a measurement needs as many reference samples as samples, and one")
        if self.rounds and sum(self.rounds) != len(self.samples_ms):
            raise ValueError("the rounds of a measurement have other samples than it")
        values = (*self.samples_ms, *self.reference_ms, self.reference_latency_ms)
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise ValueError("a measurement holds finite, positive milliseconds only")

    @functools.cached_property
    def ratios(self) -> list[float]:
        """Candidate over reference at their quiet times, round by round: clock and heat cancel."""
        quiet = stats.quiet_times(self.samples_ms, self.rounds)
        return [float(r) for r in quiet / stats.quiet_times(self.reference_ms, self.rounds)]

    @property
    def ratio(self) -> float:
        return stats.median(self.ratios)

    @property
    def ratio_ci95(self) -> tuple[float, float]:
        return stats.rounds_ci95(self.ratios, neighbours=self.other_cores_busy_share or 0.0)

    @property
    def speedup(self) -> float:
        """How many times as fast as the reference."""
        return 1 / self.ratio

    @property
    def speedup_ci95(self) -> tuple[float, float]:
        low, high = self.ratio_ci95
        return 1 / high, 1 / low

    @property
    def disturbed_share(self) -> float:
        """Share of all samples that took a tenth longer than the quiet time of their round."""
        return stats.disturbed_share((self.samples_ms, self.reference_ms), self.rounds)

    @property
    def disturbance(self) -> dict[str, float | None]:
        """How much of it was disturbed: its samples, its cores' time, and the other cores'."""
        return {
            "disturbed_share": self.disturbed_share,
            "interrupted_share": self.interrupted_share,
            "core_taken_share": self.core_taken_share,
            "other_cores_busy_share": self.other_cores_busy_share,
        }

    @property
    def latency_ms(self) -> float:
        """The ratio times the reference's latency: that of a run which nothing disturbs."""
        return self.ratio * self.reference_latency_ms

    @property
    def latency_ms_ci95(self) -> tuple[float, float]:
        low, high = self.ratio_ci95
        return low * self.reference_latency_ms, high * self.reference_latency_ms

    @property
    def reference_ms_ci95(self) -> tuple[float, float]:
        """Interval of the reference's own quiet time: wider than the ratio's, drift is in it."""
        quiet = stats.quiet_times(self.reference_ms, self.rounds)
        return stats.rounds_ci95(quiet, neighbours=self.other_cores_busy_share or 0.0)

    @property
    def significant(self) -> bool:
        """True when the whole 95 % interval of the ratio is more than 1 % away from 1.

        Equal models differ by less (benchmarks/noise.py), and less is nothing to deploy for.
        """
        low, high = self.ratio_ci95
        return high < 1.0 - NOISE_FLOOR or low > 1.0 + NOISE_FLOOR

    @property
    def stable(self) -> bool:
        return not self.unstable

    @staticmethod
    def from_json(value: Any) -> Measurement:
        """Inverse of :func:`hwloop.parsing.to_json`; raises ValueError on a wrong field."""
        return read_record(Measurement, value, _MEASUREMENT)


HOST_BOUND = "host-bound"
"""How the doubt begins about a measurement of launches rather than of what they launch."""

HOST_BOUND_SHARE = 0.8
"""Share of the host in a launch loop above which its launches are timed, not the device; trtexec's
own limit."""

CLOCKS = ("wall", "thread", "gpu")
MAX_SAMPLES = 100_000
_MS = a_number(1e-9, 1e9)
_SAMPLES = a_list(_MS, 1, MAX_SAMPLES)
_MEASUREMENT: dict[str, Check] = {
    "samples_ms": _SAMPLES,
    "reference_ms": _SAMPLES,
    "reference_latency_ms": _MS,
    "rounds": a_list(an_int(1), 0, 10_000),
    "clock": one_of(*CLOCKS),
    "warmup_count": A_COUNT,
    "stopped": a_text(40, ANY_TEXT),
    "temperature_c": optional(a_number(-300, 1e4)),
    "launch_overhead_ms": optional(a_number(-1e9, 1e9)),
    "reformats": optional(A_COUNT),
    "interrupted_share": optional(a_number(0, 1)),
    "core_taken_share": optional(a_number(0, 1)),
    "other_cores_busy_share": optional(a_number(0, 1)),
    "unstable": a_list(a_text(1000, ANY_TEXT), 0, 100),
}


class LatencySource(enum.Enum):
    """Where a latency comes from; shown with every figure that was not measured."""

    DEVICE = "device"
    SIMULATED = "simulated"

    @property
    def mark(self) -> str:
        """What follows every figure that was not measured."""
        return "" if self is LatencySource.DEVICE else f" ({self.value})"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an evaluated candidate is worth.

    Attributes:
        metric: the task's metric on the search split, in its own unit.
        metric_drop: baseline minus metric (sign turned for lower-is-better): positive = worse.
        upper_drop: one-sided 80 % bound of the drop; None where the drop is over the limit.
        latency_ms, latency_source: end-to-end latency and where it comes from.
        size_bytes: size of the exported file.
        macs: multiply-accumulates of one inference.
        measurement: the samples, when the source is the device.
    """

    metric: float
    metric_drop: float
    latency_ms: float
    latency_source: LatencySource
    size_bytes: int = 0
    macs: int = 0
    measurement: Measurement | None = None
    upper_drop: float | None = None

    @staticmethod
    def from_json(value: Any) -> Outcome:
        """Inverse of :func:`hwloop.parsing.to_json`; raises ValueError on a wrong field."""
        return read_record(Outcome, value, _OUTCOME)


_OUTCOME: dict[str, Check] = {
    "metric": ANY_NUMBER,
    "metric_drop": ANY_NUMBER,
    "upper_drop": optional(ANY_NUMBER),
    "latency_ms": _MS,
    "latency_source": LatencySource,  # a wrong word is a ValueError of the enumeration
    "size_bytes": A_COUNT,
    "macs": A_COUNT,
    "measurement": optional(Measurement.from_json),
}
