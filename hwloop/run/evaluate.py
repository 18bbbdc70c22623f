"""Candidate in, outcome out: build, measure, score, remember.

Every stage's result is stored under the digest of what went in, so an interrupted evaluation goes
on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from hwloop.compress.recover import NO_RECOVERY, Recovery
from hwloop.compress.subject import Built, Subject
from hwloop.compress.training import Schedule
from hwloop.errors import CandidateError
from hwloop.findings import LatencySource, Measurement, Outcome, Protocol
from hwloop.measure import paired as measure
from hwloop.measure.session import DeviceSession
from hwloop.records import Candidate
from hwloop.run.build import Builder
from hwloop.run.clock import Stopwatch
from hwloop.run.kept import KeptScore
from hwloop.run.latency import Latencies, latencies
from hwloop.run.memory import Figures
from hwloop.run.scoring import Scorer, score
from hwloop.runtimes.graph import OnnxModel
from hwloop.tasks.score import ScoredSplit
from hwloop.tasks.splits import Split

LOOP_SAMPLES = 2000
"""Of the search split for a candidate of the search; what may ship is scored on all of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluator:
    """What becomes of candidates on one target: its pieces, and all of them in a row.

    Attributes:
        scorer: scores on the whole search split.
        loop_scorer: on some random samples of it, for the search.
        figures: where every result is stored.
        loop_schedule: recovery of candidates in the search.
        source: whether latencies are measured or computed.
    """

    builder: Builder
    latencies: Latencies
    scorer: Scorer
    loop_scorer: Scorer
    figures: Figures
    loop_schedule: Schedule
    source: LatencySource

    @property
    def subject(self) -> Subject:
        return self.builder.subject

    @property
    def session(self) -> DeviceSession:
        return self.builder.session

    @property
    def clock(self) -> Stopwatch:
        return self.builder.clock

    @property
    def baseline(self) -> Measurement:
        """The dense network's latency."""
        return self.latencies.baseline

    def outcome(self, candidate: Candidate) -> tuple[Outcome, Built | None]:
        """Evaluate with the in-loop recovery, on the search split.

        Returns:
            The outcome, and what was built for it; None when every stage was stored already.

        Raises:
            CandidateError: the stage at which the candidate failed.
            TargetError: the device is lost.
        """
        known = self.figures.score(candidate, self.loop_schedule)
        measurement = self.latencies.known(candidate)
        built = None
        if known is None or measurement is None:
            built = self.builder.build(candidate, self.loop_schedule)
            with self.session.holding(built.model):
                measurement = self.latencies.of(built)
                known = self._scored(built)
        outcome = Outcome(
            metric=known.metric,
            metric_drop=known.drop,
            upper_drop=known.upper_drop,
            latency_ms=measurement.latency_ms,
            latency_source=self.source,
            size_bytes=known.size_bytes,
            macs=self.subject.macs(candidate),
            measurement=measurement,
        )
        return outcome, built

    def timed_for_long(self, candidate: Candidate, protocol: Protocol) -> Measurement:
        """A candidate's latency by a longer protocol, measured once; weights do not matter for it.

        Raises:
            CandidateError: it cannot be built or run.
        """
        known = self.latencies.long(candidate)
        if known is not None:
            return known
        built = self.builder.build(candidate, NO_RECOVERY)
        with self.session.holding(built.model):
            return self.latencies.for_long(built, protocol)

    def _scored(self, built: Built) -> KeptScore:
        """The score as it is stored: what was stored before stands."""
        scored, size_bytes = self.loop_scorer.scored(built.model), len(built.model.data)
        found = KeptScore(**vars(scored), size_bytes=size_bytes)
        self.figures.add_score(built.candidate, self.loop_schedule, found)
        return self.figures.score(built.candidate, self.loop_schedule) or found


def evaluator_of(
    subject: Subject,
    session: DeviceSession,
    *,
    figures: Figures,
    recovery: Recovery,
    loop_schedule: Schedule,
    max_drop: float | None,
    protocol: Protocol,
    simulated: bool,
    clock: Stopwatch,
) -> Evaluator:
    """Measure and score the dense network, and hold candidates against it.

    Args:
        loop_schedule: recovery of candidates in the search.
        max_drop: the limit that the bound of a drop is held against.
        protocol: of the end-to-end measurement in the search.
        simulated: latencies are computed, not measured.

    Raises:
        TargetError: the target cannot run the dense network.
    """
    builder = Builder(
        subject=subject, session=session, recovery=recovery, clock=clock, simulated=simulated
    )
    dense = subject.model(subject.dense_candidate, subject.graph)
    measured = latencies(dense, session, protocol=protocol, figures=figures, clock=clock)
    samples = subject.task.search()
    scorer_of = partial(
        _scorer,
        builder,
        dense,
        max_drop=max_drop,
        figures=figures,
        samples=samples,
        judged_on=len(subject.task.test()),
    )
    scorer = scorer_of(count=None)
    many = len(samples) > LOOP_SAMPLES
    loop_scorer = scorer_of(count=LOOP_SAMPLES) if many else scorer
    return Evaluator(
        builder=builder,
        latencies=measured,
        scorer=scorer,
        loop_scorer=loop_scorer,
        figures=figures,
        loop_schedule=loop_schedule,
        source=LatencySource.SIMULATED if simulated else LatencySource.DEVICE,
    )


def _scorer(
    builder: Builder,
    dense: OnnxModel,
    *,
    max_drop: float | None,
    figures: Figures,
    samples: Split,
    judged_on: int,
    count: int | None,
) -> Scorer:
    """Of ``count`` random samples of the search split, or of all."""
    task = builder.subject.task
    split = ScoredSplit(task, samples, count=count)
    return Scorer(
        task=task,
        split=split,
        dense=dense,
        dense_metric=_baseline_metric(builder, dense, split=split, figures=figures, count=count),
        judged_on=judged_on,
        max_drop=max_drop,
        session=builder.session,
        clock=builder.clock,
    )


def _baseline_metric(
    builder: Builder, dense: OnnxModel, *, split: ScoredSplit, figures: Figures, count: int | None
) -> float:
    """The dense network on the search split, checked and scored once in a run."""
    known = figures.baseline_metric(count)
    if known is not None:
        return known
    session = builder.session
    try:
        builder.check_dense(dense)
        metric = score(dense, split, session=session, clock=builder.clock)
    except CandidateError as error:
        raise measure.unusable(session, "the dense network", error) from error
    figures.add_baseline_metric(metric, count)
    return float(metric)
