"""The timing harness: two engines, interleaved, until their ratio is known well enough.

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

VERSION = 1
"""Part of every fingerprint: raise it when a change here changes what a figure means."""

CHECK_EVERY = 5
Z95 = 1.959964


def compare(
    open_candidate: Callable[[], Opened],
    open_reference: Callable[[], Opened],
    protocol: dict[str, Any],
    *,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Sample two engines alternately (A B, then B A) over several rounds of fresh engines.

    Every round opens both engines anew: where the allocator puts the weights moves a latency by
    a per cent or two, and a fresh round draws that luck again. An opener returns a sampler, or a
    plain call, which is timed on ``clock``.

    Returns:
        samples_ms, reference_ms: equally long lists, milliseconds per run, in order;
        warmup_count: runs before the samples; stopped: precise, time or count.
    """
    rounds = int(protocol["rounds"])
    deadline = clock() + float(protocol["time_limit_s"])
    samples: list[float] = []
    reference: list[float] = []
    warmups = 0
    stopped = "time"
    for index in range(rounds):
        with ExitStack() as opened:
            candidate_run = _sampler(open_candidate(), clock)
            opened.callback(candidate_run.close)
            reference_run = _sampler(open_reference(), clock)
            opened.callback(reference_run.close)
            warmup_s = float(protocol["warmup_s"]) / rounds
            warmups += _warm_up((candidate_run, reference_run), warmup_s, clock)
            candidate_loops = _loops(candidate_run, float(protocol["sample_s"]))
            reference_loops = _loops(reference_run, float(protocol["sample_s"]))
            # A round may use its share of the limits, so that every round has a say.
            share = (index + 1) / rounds
            enough = max(1, math.ceil(int(protocol["min_samples"]) * share))
            most = max(1, math.ceil(int(protocol["max_samples"]) * share))
            round_deadline = deadline - (1 - share) * float(protocol["time_limit_s"])
            while True:
                pair = [(candidate_run, candidate_loops, samples)]
                pair.append((reference_run, reference_loops, reference))
                for run, loops, values in pair if len(samples) % 2 == 0 else reversed(pair):
                    values.append(run.sample_ms(loops))
                count = len(samples)
                if count >= enough and count % CHECK_EVERY == 0:
                    halfwidth = ratio_halfwidth(samples, reference)
                    if halfwidth <= float(protocol["target_halfwidth"]):
                        stopped = "precise"
                        break
                if count >= most:
                    stopped = "count"
                    break
                if clock() >= round_deadline and count > index:
                    stopped = "time"
                    break
    return {
        "samples_ms": samples,
        "reference_ms": reference,
        "warmup_count": warmups,
        "stopped": stopped,
    }


def ratio_halfwidth(samples: Sequence[float], reference: Sequence[float]) -> float:
    """Half the 95 % interval of the median ratio, relative to it (order statistics)."""
    ratios = sorted(a / b for a, b in zip(samples, reference))  # noqa: B905 - equal by contract
    n = len(ratios)
    half = Z95 * math.sqrt(n) / 2
    low = ratios[max(math.floor(n / 2 - half), 0)]
    high = ratios[min(math.ceil(n / 2 + half), n - 1)]
    return (high - low) / 2 / ratios[n // 2]


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


def _loops(sampler: Sampler, sample_s: float) -> int:
    """Back-to-back runs that fill one sample; doubling, as timeit does."""
    loops = 1
    while loops < 1 << 20:
        elapsed = sampler.sample_ms(loops) * loops / 1000
        if elapsed >= sample_s:
            break
        loops = min(loops * 2, max(loops + 1, int(loops * sample_s / max(elapsed, 1e-9))))
    return loops
