"""Candidate in, outcome out: compress, recover, score, export, measure.

Every stage's result is stored under the digest of what went in, so an interrupted evaluation goes
on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hwloop import measure, space
from hwloop.accuracy import Run, ScoredSplit
from hwloop.compress.apply import compress, deployable, in_base_precision
from hwloop.distill import Recipe, Recovery
from hwloop.errors import CandidateError, UsageError
from hwloop.export import check_deployed, check_outputs, export_onnx, host_run
from hwloop.fp16_range import Kept, kept_float
from hwloop.model import describe
from hwloop.parsing import A_COUNT, ANY_NUMBER, an_object, optional
from hwloop.profile import TargetProfile, rules_for
from hwloop.proof import prove
from hwloop.records import (
    Candidate,
    LatencySource,
    Measurement,
    Network,
    Outcome,
    Protocol,
    digest,
)
from hwloop.scope import Scope
from hwloop.space import SpaceRules
from hwloop.targets import DeviceSession, Model
from hwloop.task import Task

CALIBRATION_INPUTS = 128
RANGE_INPUTS = 8
"""Of the search split, which is the same in every run; FP16 has a quarter of its range to spare."""

KEPT_SCORE = an_object(
    {
        "metric": ANY_NUMBER,
        "drop": ANY_NUMBER,
        "upper_drop": optional(ANY_NUMBER),
        "size_bytes": A_COUNT,
    }
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The network under compression, and everything about it that no candidate changes.

    Attributes:
        dense: the trained network, in eval mode; never changed.
        example: an input of the deployed shape.
        rules: what the target can make use of, its quantization recipe among it.
        float_graph: the dense network as exported, in FP32.
        graph: the dense network as it ships, in the target's base precision: the baseline.
        isa: the target's instruction sets.
        fp16: what stays FP32 where the base precision is FP16; None where it is FP32.
    """

    task: Task
    dense: nn.Module
    example: Tensor
    network: Network
    rules: SpaceRules
    float_graph: bytes
    graph: bytes
    isa: str
    fp16: Kept | None = None

    @property
    def dense_candidate(self) -> Candidate:
        return space.candidate((0,) * len(self.network.groups))

    def model(self, candidate: Candidate, graph: bytes) -> Model:
        return Model(graph, space.network_configs(self.network, candidate, self.rules))

    def macs(self, candidate: Candidate) -> int:
        configs = space.network_configs(self.network, candidate, self.rules)
        return sum(config.macs for config in configs)


def dense_graph(module: nn.Module, example: Tensor, *, name: str) -> bytes:
    """The dense network as an FP32 graph. Raises UsageError where it cannot be exported."""
    try:
        return export_onnx(module, example)
    except CandidateError as error:
        raise UsageError(
            f"{name} cannot be exported to ONNX: {error}", "change that layer's forward"
        ) from error


def subject(
    task: Task,
    module: nn.Module,
    profile: TargetProfile,
    *,
    isa: str,
    name: str,
    graph: bytes | None = None,
    fp16: Kept | None = None,
) -> Subject:
    """Export and describe the dense network for one target.

    Args:
        isa: the target's instruction sets, ``+``-separated.
        graph: the network as :func:`dense_graph` gives it, where that was done already.
        fp16: what was decided for the network before, where it ships in FP16.

    Raises:
        UsageError: the network cannot be exported or traced, or there is nothing to decide.
    """
    example = task.example()
    rules = rules_for(profile, isa)
    float_graph = dense_graph(module, example, name=name) if graph is None else graph
    try:
        if rules.base_precision != "fp16":
            fp16 = None
        elif fp16 is None:
            fp16 = _decided_fp16(task, example, float_graph)
        if fp16 is not None:
            rules = replace(rules, kept_float=fp16.operators)
        graph = in_base_precision(float_graph, rules)
    except CandidateError as error:
        raise UsageError(f"{name} cannot be converted: {error}", "--target cpu") from error
    return Subject(
        task=task,
        dense=module,
        example=example,
        network=describe(module, example, float_graph, name=name),
        rules=rules,
        float_graph=float_graph,
        graph=graph,
        isa=isa,
        fp16=fp16,
    )


def _decided_fp16(task: Task, example: Tensor, graph: bytes) -> Kept:
    split = task.search()
    inputs, _ = split.batch(range(min(RANGE_INPUTS, len(split))))
    return kept_float(graph, example, inputs.numpy().astype(np.float32))


class Stopwatch:
    """Seconds by stage of a run, without overlap; survives a resume through ``before``."""

    def __init__(self, before: dict[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict(before or {})

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


def check_has_choices(found: Subject) -> None:
    """Refuse a network in which nothing can be decided on this target.

    Raises:
        UsageError: every group has one legal action, to be left alone.
    """
    if any(sum(mask) > 1 for mask in space.masks(found.network, found.rules)):
        return
    rules = found.rules
    refused = f"; it builds no INT8 {', '.join(rules.refused_kinds)}" if rules.refused_kinds else ""
    raise UsageError(
        f"nothing in {found.network.name} can be compressed on this target: all "
        f"{len(found.network.groups)} groups are too thin or fixed (widths are multiples of "
        f"{rules.align}, actions {', '.join(rules.kinds)}{refused})",
        "take a wider network, or allow more in the profile's [space]",
    )


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A model's score on the search split.

    Attributes:
        metric, drop: in the metric's unit; positive drop = worse than the dense network.
        upper_drop: one-sided 80 % bound of the drop; None where it is of no interest, because
            the drop itself is over the limit.
    """

    metric: float
    drop: float
    upper_drop: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Built:
    """A compressed, recovered, exported and checked candidate."""

    candidate: Candidate
    module: nn.Module
    model: Model


class Evaluator:
    """Evaluates candidates of one subject on one device session.

    Args:
        loop_recipe: recovery of candidates in the search.
        max_drop: the limit that the bound of a drop is held against.
        protocol: of the end-to-end measurement in the search.
        simulated: latencies are computed, not measured.
    """

    def __init__(
        self,
        subject: Subject,
        session: DeviceSession,
        store: Scope,
        *,
        recovery: Recovery,
        loop_recipe: Recipe,
        max_drop: float | None,
        protocol: Protocol,
        simulated: bool,
        clock: Stopwatch,
    ) -> None:
        self.subject = subject
        self.session = session
        self.store = store
        self.recovery = recovery
        self.loop_recipe = loop_recipe
        self.max_drop = max_drop
        self.protocol = protocol
        self.source = LatencySource.SIMULATED if simulated else LatencySource.DEVICE
        self.clock = clock
        self.search_split = ScoredSplit(subject.task, subject.task.search())
        self._dense_outputs: NDArray[Any] | None = None
        self.dense_model = subject.model(subject.dense_candidate, subject.graph)
        self.baseline = self._baseline()
        self.baseline_metric = self._baseline_metric()

    def outcome(self, candidate: Candidate) -> tuple[Outcome, Built | None]:
        """Evaluate with the in-loop recovery, on the search split.

        Returns:
            The outcome, and what was built for it; None when every stage was stored already.

        Raises:
            CandidateError: the stage at which the candidate failed.
            TargetError: the device is lost.
        """
        score_key = digest([candidate, self.loop_recipe])
        known = self.store.get("score", score_key, KEPT_SCORE)
        measurement = self.latency(candidate)
        built = None
        if known is None or measurement is None:
            built = self.build(candidate, self.loop_recipe)
            try:
                measurement = self.measurement(built)
                scored = self.scored(built.model)
            finally:
                self.session.forget(built.model)
            size = len(built.model.data)
            self.store.add("score", score_key, {**vars(scored), "size_bytes": size})
            known = self.store.get("score", score_key, KEPT_SCORE)
        outcome = Outcome(
            metric=known["metric"],
            metric_drop=known["drop"],
            upper_drop=known["upper_drop"],
            latency_ms=measurement.latency_ms,
            latency_source=self.source,
            size_bytes=known["size_bytes"],
            macs=self.subject.macs(candidate),
            measurement=measurement,
        )
        return outcome, built

    def build(
        self,
        candidate: Candidate,
        recipe: Recipe,
        tick: Callable[[int, int], None] | None = None,
    ) -> Built:
        """Compress, recover, export and check. Raises CandidateError."""
        subject = self.subject
        with self.clock("compress"):
            module = compress(
                subject.dense,
                subject.example,
                subject.network,
                candidate=candidate,
                rules=subject.rules,
            )
        if candidate != subject.dense_candidate:
            with self.clock("train"):
                self.recovery.recover(module, recipe, tick=tick)
        return self.exported(candidate, module)

    def exported(self, candidate: Candidate, module: nn.Module) -> Built:
        """Export a compressed module, check it, and give its groups their precisions."""
        subject = self.subject
        with self.clock("export"):
            plain = export_onnx(module, subject.example)
            final = deployable(
                module,
                subject.example,
                plain,
                network=subject.network,
                candidate=candidate,
                calibration=self.recovery.calibration_inputs(CALIBRATION_INPUTS),
                rules=subject.rules,
                isa=subject.isa,
            )
            model = subject.model(candidate, final)
            try:
                self._check(candidate, module, plain, model)
            except CandidateError:
                self.session.forget(model)
                raise
            finally:
                self.session.forget(Model(plain))
        return Built(candidate=candidate, module=module, model=model)

    def _check(self, candidate: Candidate, module: nn.Module, plain: bytes, model: Model) -> None:
        """The exported FP32 graph against PyTorch; where FP16 ships, that against FP32 as well."""
        example = self.subject.example
        if self.subject.rules.base_precision == "fp32":
            check_outputs(module, example, self.run(Model(plain)))
            return
        # A target that ships FP16 never runs FP32, and may need minutes to build it.
        run = host_run(plain)
        check_outputs(module, example, run)
        int8 = any(action.precision == "int8" for action in candidate.actions)
        check_deployed(example, run, self.run(model), int8=int8)
        if self.source is LatencySource.SIMULATED:
            prove(model.data)  # in a rehearsal NVIDIA's builder is the only one that can refuse

    def measurement(self, built: Built) -> Measurement:
        """The end-to-end latency against the dense network; measured once per candidate."""
        known = self.latency(built.candidate)
        if known is None:
            with self.clock("measure"):
                measurement = measure.against(
                    self.session,
                    built.model,
                    self.dense_model,
                    protocol=self.protocol,
                    reference_latency_ms=self.baseline.latency_ms,
                )
            self.store.add("latency", built.candidate.digest(), measurement)
            known = self.latency(built.candidate) or measurement
        return known

    def latency(self, candidate: Candidate) -> Measurement | None:
        """The end-to-end latency as it was measured, or None where it was not yet."""
        found: Measurement | None = self.store.get(
            "latency", candidate.digest(), Measurement.from_json
        )
        return found

    def score(self, model: Model, split: ScoredSplit) -> float:
        """The task's metric of a model, as the device computes it."""
        with self.clock("score"):
            return split.score(self.run(model))

    def scored(self, model: Model) -> Scored:
        """A model's score on the search split, as the device computes it. Raises CandidateError."""
        task = self.subject.task
        with self.clock("score"):
            outputs = self.search_split.finite_outputs(self.run(model))
            metric = self.search_split.metric(outputs)
            drop = task.drop(self.baseline_metric, metric)
            upper = drop if self.max_drop is None else None
            if self.max_drop is not None and drop <= self.max_drop:
                if self._dense_outputs is None:
                    self._dense_outputs = self.search_split.outputs(self.run(self.dense_model))
                upper = self.search_split.upper_drop(self._dense_outputs, outputs, drop=drop)
        return Scored(metric=metric, drop=drop, upper_drop=upper)

    def run(self, model: Model) -> Run:
        """Outputs of a model on the device."""
        return lambda inputs: self.session.infer(model, inputs)

    def _baseline(self) -> Measurement:
        if self.store.get("baseline", "latency", Measurement.from_json) is None:
            with self.clock("measure"):
                found = measure.baseline(self.session, self.dense_model, self.protocol)
            self.store.add("baseline", "latency", found)
        kept: Measurement = self.store.get("baseline", "latency", Measurement.from_json)
        return kept

    def _baseline_metric(self) -> float:
        if self.store.get("baseline", "metric", ANY_NUMBER) is None:
            try:
                with self.clock("export"):
                    dense, model = self.subject, self.dense_model
                    self._check(dense.dense_candidate, dense.dense, dense.float_graph, model)
                metric = self.score(self.dense_model, self.search_split)
            except CandidateError as error:
                raise measure.unusable(self.session, "the dense network", error) from error
            self.store.add("baseline", "metric", metric)
        return float(self.store.get("baseline", "metric", ANY_NUMBER))
