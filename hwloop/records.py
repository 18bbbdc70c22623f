"""What is asked about a network, as frozen records: values in, values out, no I/O and no torch.

The network, what may be done to it, and the goal; what was found on a target is in
:mod:`hwloop.findings`. Everything here turns into JSON with :func:`hwloop.parsing.to_json`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hwloop.parsing import (
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


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """The key of the latency table: one fused block as the runtime executes it.

    It has no layer name, so equal layers share a row. Kernel-less operators (``linear``,
    ``quantize``, ``dequantize``) keep the neutral defaults.

    Attributes:
        op: conv, linear, attention (from the linear layers' outputs to what the last one reads),
            maxpool, avgpool, globalavgpool, layernorm, batchnorm (that no convolution takes in),
            concat (two halves), resize (of an image, bilinear), quantize, dequantize, elementwise
            (the tail alone), or empty (what one call of the runtime costs without any work).
        in_shape: (N, C, H, W), (N, C) for linear, or (N, C, queries, keys) for attention.
        out_channels: channels (features) of the output.
        kernel, stride, padding: (height, width); padding is symmetric. Of a resize the kernel is
            the size that it gives.
        precision_in, precision, precision_out: fp32, fp16 or int8 - of the input tensor, of the
            arithmetic, of the output tensor. A change of precision is a row of its own.
        sparsity: dense or 2:4.
        rank: inner rank of a factorised layer, or None.
        tail: what the runtime fuses behind the operator, in order: bias, add, relu, ...; of a
            change of precision ``plain`` where the float tensor is no convolution's.
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
        """Inverse of :func:`hwloop.parsing.to_json`; raises ValueError on a wrong field."""
        return read_record(LayerConfig, value, _LAYER)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of one inference; 0 for operators without weights."""
        if self.op == "attention":
            return 2 * math.prod(self.in_shape)
        if self.op not in ("conv", "linear"):
            return 0
        positions = math.prod(self.out_sides) if self.op == "conv" else 1
        per_output = self.in_shape[1] // self.groups * math.prod(self.kernel)
        found = self.in_shape[0] * positions * self.out_channels * per_output
        return found // 2 if self.sparsity == "2:4" else found

    @property
    def out_sides(self) -> tuple[int, ...]:
        """(height, width) of what a kernel that moves over an image writes."""
        return tuple(
            (side + 2 * pad - kernel) // stride + 1
            for side, kernel, stride, pad in zip(
                self.in_shape[2:], self.kernel, self.stride, self.padding, strict=True
            )
        )

    @property
    def weight_bytes(self) -> int:
        """Of the weights that its arithmetic reads."""
        has_weights = self.op in ("conv", "linear")
        per_output = self.in_shape[1] // self.groups * math.prod(self.kernel)
        return has_weights * self.out_channels * per_output * _BYTES[self.precision]

    @property
    def input_bytes(self) -> int:
        """Of the tensor that it reads."""
        return math.prod(self.in_shape) * _BYTES[self.precision_in]


_BYTES = {"fp32": 4, "fp16": 2, "int8": 1, "fp8": 1}
_SIZE = an_int(1)
_PRECISION = one_of("fp32", "fp16", "int8", "fp8")
_LAYER: dict[str, Check] = {
    "op": one_of(
        *("conv", "linear", "attention", "maxpool", "avgpool", "globalavgpool"),
        *("layernorm", "batchnorm", "concat", "resize", "quantize", "dequantize"),
        *("elementwise", "empty"),
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
        branch: index of the group with which the residual block goes that it is in; None where
            none can.
        is_float: it computes in base precision, whatever it reads.
        reads_float: so is what it reads computed, whatever the precisions of ``in_groups``.
        sized: ``config`` at each size of the first group's ``sizes``; empty where that has none.
    """

    name: str
    config: LayerConfig
    out_group: int | None
    in_groups: tuple[tuple[int, int], ...]
    branch: int | None = None
    is_float: bool = False
    reads_float: bool = False
    sized: tuple[LayerConfig, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """One decision: the layers whose output channels must change together.

    Attributes:
        name: name of its first layer in forward order.
        layers: names of all members.
        channels: of the dense network that can be told apart: a layer may write several for each.
        prunable: False where the width is part of the network's interface (a classifier).
        block: the block it belongs to, e.g. ``stage1.0``.
        branch: path of the residual block that can be left out with this group, the first within
            it; empty where there is none.
        bundle: channels that can only go together, side by side: those of an attention's head, or
            of a grouped convolution's group.
        fixed_by: in words, why its width cannot change; empty where it can.
        sizes: shares of the input's sides at which the network can compute; only of a first group
            that stands for the input, whose one layer shrinks it.
    """

    name: str
    layers: tuple[str, ...]
    channels: int
    prunable: bool
    block: str
    branch: str = ""
    bundle: int = 1
    fixed_by: str = ""
    sizes: tuple[float, ...] = ()


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
        kind: keep, or the word of a compression method: drop, prune. Which words there are, the
            menu decides: :func:`hwloop.compress.space.check_candidate`.
        amount: share of the channels that stays, in (0, 1]; 1.0 for keep.
        precision: base (what the target runs without quantization), int8 or fp8.
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

    @property
    def is_cut(self) -> bool:
        """Whether anything but precisions is changed: else there is nothing to recover."""
        return any(action.kind != KEEP.kind for action in self.actions)

    @staticmethod
    def from_json(value: Any) -> Candidate:
        """Inverse of :func:`hwloop.parsing.to_json`; raises ValueError on a wrong field."""
        return read_record(Candidate, value, {"actions": a_list(_action, 0, 100_000)})


_ACTION: dict[str, Check] = {
    "kind": a_text(31, r"[a-z][a-z0-9-]{0,30}"),
    "amount": a_number(1e-9, 1.0),
    "precision": one_of("base", "int8", "fp8"),
}


def _action(value: Any) -> Action:
    return read_record(Action, value, _ACTION)


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
