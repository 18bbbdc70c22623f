"""What a run found: the record at its end, of plain values, for those who tell it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from hwloop.findings import Fingerprint, Measurement
from hwloop.measure.trial import Trial
from hwloop.records import Action, Candidate
from hwloop.run.settings import Settings
from hwloop.run.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Usual:
    """What people would try without a search: one action for every group.

    Attributes:
        without_every: residual blocks that are left out besides: every so-manieth; 0 for none.
    """

    action: Action
    without_every: int = 0


BY_HAND = {
    "whole-network INT8": Usual(action=Action(precision="int8")),
    "uniform width 50 %": Usual(action=Action(kind="prune", amount=0.5)),
    "uniform width 50 %, INT8": Usual(action=Action(kind="prune", amount=0.5, precision="int8")),
    "uniform width 25 %, INT8": Usual(action=Action(kind="prune", amount=0.25, precision="int8")),
    "half of the blocks, INT8": Usual(action=Action(precision="int8"), without_every=2),
}

BY_HAND_IN_FP8 = {"whole-network FP8": Usual(action=Action(precision="fp8"))}
"""Tried as well where the target has it."""


def tried_by_hand(precisions: Collection[str]) -> dict[str, Usual]:
    """The usual settings of a target with these precisions, by name."""
    return {**BY_HAND, **(BY_HAND_IN_FP8 if "fp8" in precisions else {})}


USUAL = "recipe"
"""Source of the trials that are one of these."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where it was measured: the profile's name, and what may be claimed of it.

    Attributes:
        without_copies: latencies have no copies to and from a graphics card in them.
    """

    name: str
    without_copies: bool
    verified: bool
    simulated: bool


@dataclass(frozen=True, kw_only=True)
class NetworkFigures:
    """A network apart from its latency.

    Attributes:
        metric: on the test split, computed by the target.
        size_bytes: of the ONNX file.
        macs: multiply-accumulates of one inference.
    """

    metric: float
    size_bytes: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class ByHand:
    """One of the usual settings, recovered and judged like the network that ships.

    Attributes:
        candidate: what is done to each group.
        steps: distillation steps of its recovery.
        measurement: against the dense network, by the protocol of a bench.
        drop, search_drop: of the metric on the test and on the search split, positive = worse.
        failed: why there are no figures, or None; then the others are None.
    """

    candidate: Candidate
    steps: int | None = None
    measurement: Measurement | None = None
    network: NetworkFigures | None = None
    drop: float | None = None
    search_drop: float | None = None
    failed: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """How long networks were distilled.

    Attributes:
        loop_steps: each trial of the search.
        steps, search_drop: the best network, and its drop on the search split after it; None of
            them for the dense one.
        usual_setting: the name of the usual setting that the best network is, or None.
    """

    loop_steps: int
    steps: int | None
    search_drop: float | None
    usual_setting: str | None


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was done to one group of layers.

    Attributes:
        fixed_by: in words, why its width could not change; empty where it could.
    """

    group: str
    layers: tuple[str, ...]
    action: str
    fixed_by: str = ""


@dataclass(frozen=True, kw_only=True)
class Precisions:
    """Which precisions the target could be given, and what was taken from them and why.

    Attributes:
        kept_float: operators of the dense network that stay FP32 where FP16 ships.
        int8_refused: kinds of int8 rows, and of FP8 ones, that the target does not build, with its
            reasons.
        int8_masked_groups: groups that are never quantized, or never so, because of it.
    """

    base: str
    kept_float: tuple[str, ...]
    kept_float_why: str
    int8_refused: dict[str, str]
    int8_masked_groups: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TableUse:
    """The latency table of a run.

    Attributes:
        rows, hits, misses: in all, those that were there before, those that were measured.
        row_doubts: why some rows should not be trusted, in sentences.
        unpaid: by kind, how many actions were not searched because by the rows they gain nothing.
        error: of the prediction, on networks outside the fit.
    """

    rows: int
    hits: int
    misses: int
    row_doubts: list[str]
    unpaid: dict[str, int]
    error: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run, for :mod:`hwloop.report`: nothing in it is computed there.

    Attributes:
        measurement: the chosen network against the dense one, by the final protocol.
        baseline, best: the two networks.
        metric_runtime: what computed the outputs that the metric is of.
        drop: of the metric on the test split, positive = worse.
        done: what was done to each group, in the network's order.
        menu: every action that could be chosen.
        recovery: how long networks were distilled.
        by_hand: the usual settings, by name.
        front: trials that no other beats in both latency and drop, fastest first.
        warnings: what is doubtful about the task, its data or the goal.
        engine: SHA-256 and audit of the engine that ships, where the runtime has one.
        energy_mj: per inference of the baseline and the best, where the target has power rails; or
            why it failed.
        copies: an inference with its copies to and from the GPU, and without, of the baseline and
            the best; None where nothing is copied; or why it failed.
    """

    settings: Settings
    target: Target
    fingerprint: Fingerprint
    verdict: Verdict
    measurement: Measurement
    metric_name: str
    metric_runtime: str
    baseline: NetworkFigures
    best: NetworkFigures
    drop: float
    done: tuple[Done, ...]
    precisions: Precisions
    engine: dict[str, Any] | None
    energy_mj: dict[str, Any] | None
    copies: dict[str, Any] | None
    menu: tuple[Action, ...]
    trials: list[Trial]
    recovery: Recovered
    by_hand: dict[str, ByHand]
    front: list[Trial]
    table: TableUse
    warnings: tuple[str, ...]
    seconds_by_stage: dict[str, float]
    wall_s: float
