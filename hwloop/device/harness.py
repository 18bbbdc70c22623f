"""The timing harness: two engines in turns, until their ratio is known well enough.

The protocol is the ``Protocol`` record as a plain dict; docs/measuring.md explains the choices.
What an engine is, and on which clock it is timed, is its :class:`Sampler`'s business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, Union, runtime_checkable

Run = Callable[[], None]
Clock = Callable[[], float]


@runtime_checkable
class Sampler(Protocol):
    """One opened engine.

    Attributes:
        warmup_loops: runs per turn while warming up.
    """

    warmup_loops: int

    def sample_ms(self, loops: int) -> float:
        """Run ``loops`` times back to back, wait for the end: milliseconds per run."""
        ...

    def close(self) -> None:
        """Free what it holds on the device."""
        ...


class HostSampler:
    """Times a plain call on the host's clock."""

    warmup_loops = 1

    def __init__(self, run: Run, clock: Clock) -> None:
        self._run = run
        self._clock = clock

    def sample_ms(self, loops: int) -> float:
        run, clock = self._run, self._clock
        started = clock()
        for _ in range(loops):
            run()
        return (clock() - started) / loops * 1000

    def close(self) -> None:
        """The call's memory goes with its last reference."""


Opened = Union[Run, Sampler]  # noqa: UP007 - evaluated by Python 3.10

VERSION = 2
"""Part of every fingerprint: raise it when a change here changes what a figure means."""

QUIET = 0.05
"""The quantile of a round's samples that stands for the undisturbed machine. What else runs there
adds time to some samples and to others none, so a low quantile of many short samples tells what
the engine takes; the least would be an outlier's word (docs/measuring.md)."""

MIN_TURNS = 4
"""Of a round, unless its time is over: what disturbs in slices should not meet one engine alone."""

LONGEST_TURN = 4
"""Turns of the slower engine last at most so many times ``turn_s``: both have as many samples."""

TRIALS, TRIAL_S = 3, 0.01
"""Samples that are tried to choose loops and turns, and seconds after which no more are begun."""

FAR = 1.1
Z95 = 1.959964
MAX_LOOPS = 1 << 20
SHORTEST_S = 1e-9  # of a clock that stands still


def compare(
    open_candidate: Callable[[], Opened],
    open_reference: Callable[[], Opened],
    protocol: dict[str, Any],
    *,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Sample two engines in turns (A B, then B A) over several rounds of fresh engines.

    A turn is a few milliseconds of consecutive short samples of one engine, so that all but its
    first find the caches as the engine leaves them. Every round opens both engines anew: where the
    allocator puts the weights moves a latency by a per cent or two, and a fresh round draws that
    luck again. An opener returns a sampler, or a plain call, which is timed on ``clock``.

    Returns:
        samples_ms, reference_ms: equally long lists, milliseconds per run, in order;
        rounds: how many of each a round has; warmup_count: runs before the samples;
        stopped: what ended the round that came least far: precise, count or time.
    """
    rounds = int(protocol["rounds"])
    share_s = float(protocol["time_limit_s"]) / rounds
    started = clock()
    found: dict[str, Any] = {"samples_ms": [], "reference_ms": [], "rounds": []}
    warmups = 0
    ends = []
    for index in range(rounds):
        with ExitStack() as opened:
            pair = []
            for opener in (open_candidate, open_reference):
                pair.append(_sampler(opener(), clock))
                opened.callback(pair[-1].close)
            warmups += _warm_up(pair, float(protocol["warmup_s"]) / rounds, clock)
            round_ = _Round(pair, protocol, clock)
            # A round may use its share of the time, so that every round has a say: half of it where
            # opening a large engine took the rest.
            deadline = max(started + share_s * (index + 1), clock() + share_s / 2)
            ends.append(round_.sample(deadline, first=index % 2))
        found["samples_ms"] += round_.series[0]
        found["reference_ms"] += round_.series[1]
        found["rounds"].append(len(round_.series[0]))
    return {**found, "warmup_count": warmups, "stopped": max(ends, key=ENDS.index)}


ENDS = ("precise", "count", "time")
"""What can end a round, the best first."""


class _Round:
    """Two open engines, sampled in turns until their quiet times are known well enough.

    Attributes:
        series: the samples of the candidate and those of the reference.
    """

    def __init__(self, pair: Sequence[Sampler], protocol: dict[str, Any], clock: Clock) -> None:
        rounds = int(protocol["rounds"])
        self.series: tuple[list[float], list[float]] = ([], [])
        self._pair = pair
        self._clock = clock
        self._enough = math.ceil(int(protocol["min_samples"]) / rounds)
        self._most = math.ceil(int(protocol["max_samples"]) / rounds)
        # Rounds are independent, so that each may be as much less precise than all together.
        self._halfwidth = float(protocol["target_halfwidth"]) * math.sqrt(rounds)
        sample_s = float(protocol["sample_s"])
        found = [_loops(side, sample_s, clock) for side in pair]
        self._loops, times_s = zip(*found)  # noqa: B905 - two of each
        share_s = float(protocol["time_limit_s"]) / rounds
        turn_s = min(float(protocol["turn_s"]), share_s / (2 * MIN_TURNS))
        wanted = min(turn_s / min(times_s), LONGEST_TURN * turn_s / max(times_s))
        self._turn = max(1, min(math.ceil(wanted), self._most))

    def sample(self, deadline: float, *, first: int) -> str:
        """Fill the series, beginning with one of the two; what ended it."""
        turns = 0
        while True:
            turns += 1
            for side in (first, 1 - first):
                sampler, loops, values = self._pair[side], self._loops[side], self.series[side]
                values += [sampler.sample_ms(loops) for _ in range(self._turn)]
            first = 1 - first
            count = len(self.series[0])
            if turns >= MIN_TURNS and count >= self._enough and self._is_precise():
                return "precise"
            if count >= self._most:
                return "count"
            if self._clock() >= deadline:
                return "time"

    def _is_precise(self) -> bool:
        return math.hypot(*map(quiet_halfwidth, self.series)) <= self._halfwidth


def quiet_halfwidth(values: Sequence[float]) -> float:
    """Half the 95 % interval of the quiet quantile, relative to it.

    From order statistics (Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2).
    Infinite where the least sample is far below: then hardly any was quiet, and more may be.
    """
    ordered = sorted(values)
    last = len(ordered) - 1
    middle = QUIET * last
    if FAR * ordered[0] < ordered[round(middle)]:
        return math.inf
    half = Z95 * math.sqrt(len(ordered) * QUIET * (1 - QUIET))
    low = ordered[max(math.floor(middle - half), 0)]
    high = ordered[min(math.ceil(middle + half), last)]
    return (high - low) / 2 / low


def _sampler(opened: Opened, clock: Clock) -> Sampler:
    return opened if isinstance(opened, Sampler) else HostSampler(opened, clock)


def _warm_up(samplers: Sequence[Sampler], seconds: float, clock: Clock) -> int:
    count = 0
    end = clock() + seconds
    while count == 0 or clock() < end:
        for sampler in samplers:
            sampler.sample_ms(sampler.warmup_loops)
            count += sampler.warmup_loops
    return count


def _loops(sampler: Sampler, sample_s: float, clock: Clock) -> tuple[int, float]:
    """Back-to-back runs that fill one sample, doubling as timeit does, and how long one takes.

    The second is on the host's clock, with what is around a sample.
    """
    loops = 1
    while True:
        runs_s, wall_s = _least(sampler, loops, clock)
        if runs_s >= sample_s or loops >= MAX_LOOPS:
            return loops, max(wall_s, SHORTEST_S)
        loops = min(loops * 2, max(loops + 1, int(loops * sample_s / max(runs_s, 1e-9))))


def _least(sampler: Sampler, loops: int, clock: Clock) -> tuple[float, float]:
    """Seconds of the runs of one sample and around it: the least of a few trials."""
    runs_s: list[float] = []
    walls_s: list[float] = []
    while len(runs_s) < TRIALS and sum(walls_s) < TRIAL_S:
        began = clock()
        runs_s.append(sampler.sample_ms(loops) * loops / 1000)
        walls_s.append(clock() - began)
    return min(runs_s), min(walls_s)
