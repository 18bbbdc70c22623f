"""Timing an engine with CUDA events.

A figure is ``computeMs``: the time on the GPU between two events, without copies to or from it.

A launch from Python costs the host 10 to 35 microseconds, more than a small network's kernels
take. So as many runs as last half a millisecond are captured into one graph, and a replay is
divided by them: the host is then ahead of the GPU, and the figure is the GPU's. Whether it was is
measured too, as ``host_share``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from hwloop.device.cuda import CudaBackend, CudaError
from hwloop.device.trt_run import OpenEngine, free_all

VERSION = 2
"""Part of TensorRT's fingerprint: raise it when a change here changes what a figure means."""

PLAIN_RUNS_BEFORE_CAPTURE = 2
WARMUP_LOOPS = 10
REPLAY_MS = 0.5
SHORTEST_MS = 1e-4
MARGIN = 1.2  # so that the next graph is long enough at once
MAX_RUNS_PER_GRAPH = 1024
MAX_CAPTURES = 8
TRIAL_REPLAYS = 3
HOST_LAUNCHES = 8
"""Launches of a sample that are timed on the host: few, because CUDA's queue has an end, and then
a launch waits for the GPU."""

LEAD_MAX_MS = 2.0
"""A launch this short goes before each sample, so that the GPU is busy until the first launch that
is timed has arrived. Longer ones would cost more time than the gap is worth."""

OVERHEAD_PAIRS = 5
OVERHEAD_SAMPLE_MS = 5.0
OVERHEAD_LOOPS = 50


class GraphRefused(Exception):
    """The engine cannot be captured into a graph; the message is the reason."""


class EventSampler:
    """Times an open engine between two CUDA events; see :class:`hwloop.device.harness.Sampler`.

    Args:
        opened: closed with this, also when this fails.
        use_graph: replay graphs, or launch every run plainly.
        runs_per_graph: how many; None finds as many as last REPLAY_MS.
        work: what a run is, the engine alone unless given.
        clock: the host's, in seconds.

    Attributes:
        runs_per_graph: 1 without a graph.
        warmup_loops: whole replays, at least WARMUP_LOOPS runs.
        host_shares: of each sample so far, the host's time of launching it by the GPU's of
            running it; about 1 and more where the GPU waits for the host.

    Raises:
        GraphRefused: a graph was wanted and cannot be had; plain runs may still work.
    """

    def __init__(
        self,
        opened: OpenEngine,
        *,
        cuda: CudaBackend,
        use_graph: bool,
        runs_per_graph: int | None = None,
        work: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.opened = opened
        self.runs_per_graph = 1
        self.host_shares: list[float] = []
        self._cuda = cuda
        self._work = opened.enqueue if work is None else work
        self._clock = clock
        self._launch_ms = math.inf  # of the last sample
        self._graph: Any = None
        self._events: list[Any] = []
        try:
            for _ in range(2):
                self._events.append(cuda.new_event())
            for _ in range(PLAIN_RUNS_BEFORE_CAPTURE):  # the first allocates and sets up
                self._work()
            cuda.synchronize(opened.stream)
            if use_graph and runs_per_graph is None:
                self._capture_enough()
            elif use_graph:
                self._capture(runs_per_graph or 1)
        except BaseException:
            self.close()
            raise
        self.host_shares.clear()
        replays = math.ceil(WARMUP_LOOPS / self.runs_per_graph)
        self.warmup_loops = replays * self.runs_per_graph

    def _capture_enough(self) -> None:
        """Longer graphs until one lasts: the first estimates contain the host's launches."""
        self._capture(1)
        for _ in range(MAX_CAPTURES):
            runs = self.runs_per_graph
            replay_ms = max(runs * self.sample_ms(TRIAL_REPLAYS * runs), SHORTEST_MS)
            if replay_ms >= REPLAY_MS or runs >= MAX_RUNS_PER_GRAPH:
                return
            wanted = math.ceil(MARGIN * REPLAY_MS / replay_ms * runs)
            self._capture(min(max(wanted, runs + 1), MAX_RUNS_PER_GRAPH))

    def _capture(self, runs: int) -> None:
        def work() -> None:
            for _ in range(runs):
                self._work()

        self._free_graph()
        try:
            self._graph = self._cuda.capture(self.opened.stream, work)
        except CudaError as error:
            raise GraphRefused(str(error)[:300]) from error
        self.runs_per_graph = runs

    def sample_ms(self, loops: int) -> float:
        """At least ``loops`` runs back to back, in whole replays: milliseconds per run."""
        launches = self._launches(loops)
        launch = self._work if self._graph is None else self._replay
        return self._between_events_ms(launches, launch) / (launches * self.runs_per_graph)

    def run(self, loops: int) -> int:
        """Run as often, without timing it, and wait for the end: how many runs it really were."""
        launches = self._launches(loops)
        for _ in range(launches):
            (self._work if self._graph is None else self._replay)()
        self._cuda.synchronize(self.opened.stream)
        return launches * self.runs_per_graph

    def filling(self, milliseconds: float) -> int:
        """Runs that last about that long."""
        self.sample_ms(self.warmup_loops)
        once_ms = self.sample_ms(self.warmup_loops)
        return max(1, math.ceil(milliseconds / max(once_ms, SHORTEST_MS)))

    def _launches(self, loops: int) -> int:
        return math.ceil(loops / self.runs_per_graph)

    def launch_overhead_ms(self) -> float | None:
        """What a plain run costs more than one in a graph; None without a graph."""
        if self._graph is None:
            return None
        loops = min(OVERHEAD_LOOPS, self.filling(OVERHEAD_SAMPLE_MS))
        differences = []
        for _ in range(OVERHEAD_PAIRS):
            plain_ms = self._between_events_ms(loops, self._work) / loops
            differences.append(plain_ms - self.sample_ms(loops))
        return median(differences)

    def _replay(self) -> None:
        self._cuda.replay(self._graph, self.opened.stream)

    def _between_events_ms(self, launches: int, launch: Callable[[], None]) -> float:
        cuda, stream = self._cuda, self.opened.stream
        start, end = self._events
        watched = min(launches, HOST_LAUNCHES)
        if self._launch_ms <= LEAD_MAX_MS:
            launch()
        cuda.record(start, stream)
        began = self._clock()
        for _ in range(watched):
            launch()
        host_ms = (self._clock() - began) * 1000 * launches / watched
        for _ in range(launches - watched):
            launch()
        cuda.record(end, stream)
        cuda.synchronize(stream)
        elapsed_ms = cuda.elapsed_ms(start, end)
        self._launch_ms = elapsed_ms / launches
        self.host_shares.append(host_ms / max(elapsed_ms, SHORTEST_MS))
        return elapsed_ms

    def _free_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._cuda.free_graph(graph)

    def close(self) -> None:
        """The graph goes before the engine whose memory it uses."""
        events, self._events = self._events, []
        free_events = [partial(self._cuda.free_event, event) for event in events]
        free_all(self._free_graph, *free_events, self.opened.close)
