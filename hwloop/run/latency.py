"""End-to-end latencies of a run: the dense network's, and each candidate's against it, once."""

from __future__ import annotations

from dataclasses import dataclass, field

from hwloop.compress.subject import Built
from hwloop.findings import Measurement, Protocol
from hwloop.measure import paired as measure
from hwloop.measure.second_tries import SecondTries
from hwloop.measure.session import DeviceSession
from hwloop.records import Candidate
from hwloop.run.clock import Stopwatch
from hwloop.run.memory import Figures
from hwloop.runtimes.graph import OnnxModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Latencies:
    """Latencies of candidates against the dense network.

    Attributes:
        dense: what every candidate is interleaved with.
        baseline: its accepted latency.
        protocol: of the end-to-end measurement in the search.
    """

    dense: OnnxModel
    baseline: Measurement
    session: DeviceSession
    protocol: Protocol
    figures: Figures
    clock: Stopwatch
    _second_tries: SecondTries = field(default_factory=SecondTries)

    def known(self, candidate: Candidate) -> Measurement | None:
        """As it was measured, or None where it was not yet."""
        return self.figures.latency(candidate)

    def long(self, candidate: Candidate) -> Measurement | None:
        """As it was measured for longer, or None where it was not."""
        return self.figures.long_latency(candidate)

    def for_long(self, built: Built, protocol: Protocol) -> Measurement:
        """Measured by a longer protocol, once per candidate. Raises CandidateError."""
        measurement = self._measured(built, protocol, None)
        self.figures.add_long_latency(built.candidate, measurement)
        return self.long(built.candidate) or measurement

    def of(self, built: Built) -> Measurement:
        """Measured once per candidate, whatever its weights. Raises CandidateError."""
        known = self.known(built.candidate)
        if known is not None:
            return known
        measurement = self._measured(built, self.protocol, self._second_tries)
        self.figures.add_latency(built.candidate, measurement)
        return self.known(built.candidate) or measurement

    def _measured(
        self, built: Built, protocol: Protocol, second_tries: SecondTries | None
    ) -> Measurement:
        with self.clock("measure"):
            return measure.against(
                self.session,
                built.model,
                self.dense,
                protocol=protocol,
                reference_latency_ms=self.baseline.latency_ms,
                second_tries=second_tries,
            )


def latencies(
    dense: OnnxModel,
    session: DeviceSession,
    *,
    protocol: Protocol,
    figures: Figures,
    clock: Stopwatch,
) -> Latencies:
    """Measure the dense network against itself, once in a run; the rest is held against it.

    Raises:
        TargetError: the target cannot run it.
    """
    baseline = figures.baseline_latency()
    if baseline is None:
        with clock("measure"):
            found = measure.baseline(session, dense, protocol)
        figures.add_baseline_latency(found)
        baseline = figures.baseline_latency() or found
    return Latencies(
        dense=dense,
        baseline=baseline,
        session=session,
        protocol=protocol,
        figures=figures,
        clock=clock,
    )
