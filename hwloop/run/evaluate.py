"""Candidate in, outcome out: compress, recover, score, export, measure.

Every stage's result is stored under the digest of what went in, so an interrupted evaluation goes
on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import nn

from hwloop.compress.apply import compress, deployable
from hwloop.compress.export import check_deployed, check_outputs, export_onnx, host_run
from hwloop.compress.recover import Recipe, Recovery
from hwloop.compress.subject import Built, Subject
from hwloop.errors import CandidateError
from hwloop.findings import LatencySource, Measurement, Outcome, Protocol
from hwloop.measure import paired as measure
from hwloop.measure.scope import Scope
from hwloop.measure.session import DeviceSession
from hwloop.parsing import A_COUNT, ANY_NUMBER, an_object, digest, optional
from hwloop.records import Candidate
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.proof import prove
from hwloop.tasks.score import Run, ScoredSplit

CALIBRATION_INPUTS = 128

KEPT_SCORE = an_object(
    {
        "metric": ANY_NUMBER,
        "drop": ANY_NUMBER,
        "upper_drop": optional(ANY_NUMBER),
        "size_bytes": A_COUNT,
    }
)


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
                self.session.forget(OnnxModel(plain))
        return Built(candidate=candidate, module=module, model=model)

    def _check(
        self, candidate: Candidate, module: nn.Module, plain: bytes, model: OnnxModel
    ) -> None:
        """The exported FP32 graph against PyTorch; where FP16 ships, that against FP32 as well."""
        example = self.subject.example
        if self.subject.rules.base_precision == "fp32":
            check_outputs(module, example, self.run(OnnxModel(plain)))
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

    def score(self, model: OnnxModel, split: ScoredSplit) -> float:
        """The task's metric of a model, as the device computes it."""
        with self.clock("score"):
            return split.score(self.run(model))

    def scored(self, model: OnnxModel) -> Scored:
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

    def run(self, model: OnnxModel) -> Run:
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
