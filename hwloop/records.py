"""The words of hwloop as frozen records: values in, values out, no I/O and no torch.

Units are part of the names: ``_ms`` milliseconds, ``_s`` seconds, ``_bytes``, ``_mhz``, ``_c``.
Everything here turns into JSON with :func:`to_json` and has no other state.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from hwloop import stats
from hwloop.parsing import (
    ANY_TEXT,
    LARGEST_INT,
    Check,
    a_list,
    a_number,
    a_text,
    an_int,
    one_of,
    optional,
    read_record,
)
from hwloop.parsing import parse_json as parse_json

NOISE_FLOOR = 0.01
"""Relative latency difference below which no change is claimed."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN is refused."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_json(value: Any) -> Any:
    """Turn records, enums and tuples into what ``json.dumps`` accepts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: to_json(getattr(value, field.name)) for field in fields}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


# ------------------------------------------------------------------------------ the network


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """The key of the latency table: one fused block as the runtime executes it.

    It has no layer name, so equal layers share a row. Kernel-less operators (``linear``,
    ``quantize``, ``dequantize``) keep the neutral defaults.

    Attributes:
        op: conv, linear, maxpool, avgpool, globalavgpool, quantize, dequantize, elementwise
            (the tail alone), or empty (what one call of the runtime costs without any work).
        in_shape: (N, C, H, W), or (N, C) for linear.
        out_channels: channels (features) of the output.
        kernel, stride, padding: (height, width); padding is symmetric.
        precision_in, precision, precision_out: fp32, fp16 or int8 - of the input tensor, of the
            arithmetic, of the output tensor. A change of precision is a row of its own.
        sparsity: dense or 2:4.
        rank: inner rank of a factorised layer, or None.
        tail: what the runtime fuses behind the operator, in order: bias, add, relu, ...
    """

    op: str
    in_shape: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    precision_in: str = "fp32"
    precision: str = "fp32"
    precision_out: str = "fp32"
    sparsity: str = "dense"
    rank: int | None = None
    tail: tuple[str, ...] = ()

    def key(self) -> str:
        """SHA-256 of the canonical JSON. Golden-tested: a change of it orphans every table."""
        return digest(self)

    @staticmethod
    def from_json(value: Any) -> LayerConfig:
        """Inverse of :func:`to_json`; raises ValueError on a wrong field."""
        return read_record(LayerConfig, value, _LAYER)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of one inference; 0 for operators without weights."""
        if self.op == "linear":
            return self.in_shape[0] * self.in_shape[1] * self.out_channels
        if self.op != "conv":
            return 0
        n, channels, height, width = self.in_shape
        out_h = (height + 2 * self.padding[0] - self.kernel[0]) // self.stride[0] + 1
        out_w = (width + 2 * self.padding[1] - self.kernel[1]) // self.stride[1] + 1
        per_output = channels // self.groups * self.kernel[0] * self.kernel[1]
        return n * out_h * out_w * self.out_channels * per_output


_SIZE = an_int(1)
_PRECISION = one_of("fp32", "fp16", "int8")
_LAYER: dict[str, Check] = {
    "op": one_of(
        *("conv", "linear", "maxpool", "avgpool", "globalavgpool"),
        *("quantize", "dequantize", "elementwise", "empty"),
    ),
    "in_shape": a_list(_SIZE, 2, 4),
    "out_channels": _SIZE,
    "kernel": a_list(_SIZE, 2, 2),
    "stride": a_list(_SIZE, 2, 2),
    "padding": a_list(an_int(0), 2, 2),
    "groups": _SIZE,
    "precision_in": _PRECISION,
    "precision": _PRECISION,
    "precision_out": _PRECISION,
    "sparsity": one_of("dense", "2:4"),
    "rank": optional(_SIZE),
    "tail": a_list(a_text(60, r"[\w:.+-]+"), 0, 20),
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One operator of the network and where its channels come from.

    Attributes:
        name: module path in the network, e.g. ``stage1.0.conv1``.
        config: the dense configuration.
        out_group: index of the group that decides its output channels, or None when fixed.
        in_groups: (group, channels of this input per channel of that group) for each group
            that feeds it; empty for the network's input.
    """

    name: str
    config: LayerConfig
    out_group: int | None
    in_groups: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """One decision: the layers whose output channels must change together.

    Attributes:
        name: name of its first layer in forward order.
        layers: names of all members.
        channels: output channels of the dense network.
        prunable: False where the width is part of the network's interface (a classifier).
        block: the block it belongs to, e.g. ``stage1.0``.
    """

    name: str
    layers: tuple[str, ...]
    channels: int
    prunable: bool
    block: str


@dataclass(frozen=True, kw_only=True)
class Network:
    """What the search may know about a network: its layers and groups in forward order."""

    name: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True, kw_only=True)
class Action:
    """What is done to a group: a plain value.

    Attributes:
        kind: keep, prune, lowrank, sparse24 or drop.
        amount: share of the channels that stays, in (0, 1]; 1.0 for keep.
        precision: base (what the target runs without quantization) or int8.
    """

    kind: str = "keep"
    amount: float = 1.0
    precision: str = "base"


KEEP = Action()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One action for each group of a network, in the network's order."""

    actions: tuple[Action, ...]

    def digest(self) -> str:
        return digest(self)

    @staticmethod
    def from_json(value: Any) -> Candidate:
        """Inverse of :func:`to_json`; raises ValueError on a wrong field."""
        return read_record(Candidate, value, {"actions": a_list(_action, 0, 100_000)})


_ACTION: dict[str, Check] = {
    "kind": a_text(31, r"[a-z][a-z0-9-]*"),
    "amount": a_number(1e-9, 1.0),
    "precision": one_of("base", "int8"),
}


def _action(value: Any) -> Action:
    return read_record(Action, value, _ACTION)


# ------------------------------------------------------------------------------- the device


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
        """Inverse of :func:`to_json`; raises ValueError on a wrong field."""
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
        """Inverse of :func:`to_json`; raises ValueError on a wrong field."""
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

    @property
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
        """Inverse of :func:`to_json`; raises ValueError on a wrong field."""
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
    "warmup_count": an_int(0, LARGEST_INT),
    "stopped": a_text(40, ANY_TEXT),
    "temperature_c": optional(a_number(-300, 1e4)),
    "launch_overhead_ms": optional(a_number(-1e9, 1e9)),
    "reformats": optional(an_int(0, LARGEST_INT)),
    "interrupted_share": optional(a_number(0, 1)),
    "core_taken_share": optional(a_number(0, 1)),
    "other_cores_busy_share": optional(a_number(0, 1)),
    "unstable": a_list(a_text(1000, ANY_TEXT), 0, 100),
}


# ------------------------------------------------------------------------------- the search


class LatencySource(enum.Enum):
    """Where a latency comes from; shown with every figure that was not measured."""

    DEVICE = "device"
    TABLE = "table"
    SIMULATED = "simulated"

    @property
    def mark(self) -> str:
        """What follows every figure that was not measured."""
        return "" if self is LatencySource.DEVICE else f" ({self.value})"


class TrialState(enum.Enum):
    COMPLETE = "complete"
    FAILED = "failed"


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
        """Inverse of :func:`to_json`; raises ValueError on a wrong field."""
        return read_record(Outcome, value, _OUTCOME)


_ANY = a_number(-1e300, 1e300)
_COUNT = an_int(0, LARGEST_INT)
_OUTCOME: dict[str, Check] = {
    "metric": _ANY,
    "metric_drop": _ANY,
    "upper_drop": optional(_ANY),
    "latency_ms": _MS,
    "latency_source": LatencySource,  # a wrong word is a ValueError of the enumeration
    "size_bytes": _COUNT,
    "macs": _COUNT,
    "measurement": optional(Measurement.from_json),
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One evaluated candidate. COMPLETE has an outcome, FAILED has a reason; never both."""

    number: int
    candidate: Candidate
    state: TrialState
    source: str
    outcome: Outcome | None = None
    reason: str | None = None
    predicted_ms: float | None = None
    wall_s: float = 0.0

    def __post_init__(self) -> None:
        if (self.outcome is not None) != (self.state is TrialState.COMPLETE):
            raise ValueError("a trial has an outcome if and only if it is COMPLETE")
        if bool(self.reason) != (self.state is TrialState.FAILED):
            raise ValueError("a trial has a reason if and only if it FAILED")

    @staticmethod
    def from_json(value: Any) -> Trial:
        """Inverse of :func:`to_json`; raises ValueError on a wrong field."""
        return read_record(Trial, value, _TRIAL)


_TRIAL: dict[str, Check] = {
    "number": _COUNT,
    "candidate": Candidate.from_json,
    "state": TrialState,
    "source": a_text(),
    "outcome": optional(Outcome.from_json),
    "reason": optional(a_text(10_000, ANY_TEXT)),
    "predicted_ms": optional(a_number(0, 1e30)),  # so that its error is a number as well
    "wall_s": a_number(0, 1e12),
}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the user asked for. At least one limit is set; several must all hold.

    Attributes:
        max_drop: largest loss of the metric, absolute, in the metric's unit (0.01 = one point).
        max_latency_ms: largest end-to-end latency.
        min_speedup: smallest ratio of baseline to best latency.
    """

    max_drop: float | None = None
    max_latency_ms: float | None = None
    min_speedup: float | None = None

    def budget_ms(self, baseline_ms: float) -> float | None:
        """The latency that the limits leave, or None when only the drop is limited."""
        limits = [] if self.max_latency_ms is None else [self.max_latency_ms]
        if self.min_speedup is not None:
            limits.append(baseline_ms / self.min_speedup)
        return min(limits) if limits else None
