"""Timing an engine with CUDA events.

A figure is ``computeMs``: the time on the GPU between two events, without copies to or from it.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from hwloop.device.cuda import CudaBackend, CudaError
from hwloop.device.trt_run import OpenEngine

PLAIN_RUNS_BEFORE_CAPTURE = 2
WARMUP_LOOPS = 10
OVERHEAD_PAIRS = 5
OVERHEAD_SAMPLE_MS = 5.0
OVERHEAD_LOOPS = 50


class EventSampler:
    """Times an open engine between two CUDA events; see :class:`hwloop.device.harness.Sampler`.

    Attributes:
        graph_refused: why the engine could not be captured into a graph, or None.
    """

    warmup_loops = WARMUP_LOOPS

    def __init__(self, opened: OpenEngine, *, cuda: CudaBackend, use_graph: bool) -> None:
        self._opened = opened
        self._cuda = cuda
        self._graph: Any = None
        self._events: list[Any] = []
        self.graph_refused: str | None = None
        try:
            self._events = [cuda.new_event(), cuda.new_event()]
            for _ in range(PLAIN_RUNS_BEFORE_CAPTURE):  # the first allocates and sets up
                opened.enqueue()
            cuda.synchronize(opened.stream)
            if use_graph:
                self._capture()
        except BaseException:
            self.close()
            raise

    @property
    def uses_graph(self) -> bool:
        return self._graph is not None

    def _capture(self) -> None:
        try:
            self._graph = self._cuda.capture(self._opened.stream, self._opened.enqueue)
        except CudaError as error:
            self.graph_refused = str(error)[:300]
            self._opened.enqueue()  # the engine must still run without
            self._cuda.synchronize(self._opened.stream)

    def sample_ms(self, loops: int) -> float:
        return self._between_events_ms(loops, plain=self._graph is None)

    def launch_overhead_ms(self) -> float | None:
        """What a plain run costs more than a replay; None without a graph."""
        if self._graph is None:
            return None
        once_ms = self.sample_ms(WARMUP_LOOPS)
        loops = max(1, min(OVERHEAD_LOOPS, int(OVERHEAD_SAMPLE_MS / max(once_ms, 1e-3))))
        differences = []
        for _ in range(OVERHEAD_PAIRS):
            plain_ms = self._between_events_ms(loops, plain=True)
            differences.append(plain_ms - self._between_events_ms(loops, plain=False))
        return median(differences)

    def _between_events_ms(self, loops: int, *, plain: bool) -> float:
        cuda, stream, graph = self._cuda, self._opened.stream, self._graph
        start, end = self._events
        cuda.record(start, stream)
        if plain:
            for _ in range(loops):
                self._opened.enqueue()
        else:
            for _ in range(loops):
                cuda.replay(graph, stream)
        cuda.record(end, stream)
        cuda.synchronize(stream)
        return cuda.elapsed_ms(start, end) / loops

    def close(self) -> None:
        """The graph goes before the engine whose memory it uses."""
        if self._graph is not None:
            self._cuda.free_graph(self._graph)
            self._graph = None
        for event in self._events:
            self._cuda.free_event(event)
        self._events = []
        self._opened.close()
