"""What is measured of built engines: one against another, with copies, and a launch alone.

Everything is called inside ``cuda.current()``. What can be captured is measured with graphs, all
of it or nothing: one engine's replays beside another's plain launches would compare the launches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from statistics import median
from typing import Any, TypeVar

from hwloop.device import harness, trt_audit, trt_probes
from hwloop.device.cuda import CudaBackend
from hwloop.device.trt_run import OpenEngine
from hwloop.device.trt_timing import EventSampler, GraphRefused

T = TypeVar("T")


class Sampling:
    """Opens samplers of plans and measures with them.

    Args:
        use_graph: whether graphs are wanted and the backend has them.
        clock: the host's, in seconds.
    """

    def __init__(
        self, *, trt: Any, cuda: CudaBackend, use_graph: bool, clock: Callable[[], float]
    ) -> None:
        self._trt = trt
        self._cuda = cuda
        self._use_graph = use_graph
        self._clock = clock

    def compare(
        self, candidate: bytes, reference: bytes, protocol: dict[str, Any], *, row: bool
    ) -> dict[str, Any]:
        """See :meth:`hwloop.device.trt.TrtRuntime.compare`; row: whether to count reformats."""
        plans = candidate, reference

        def measured(graph: bool) -> dict[str, Any]:
            found = self._compared(plans, protocol, graph=graph)
            sampler = self._open(candidate, graph=graph, runs=found["runs_per_graph"])
            with closing(sampler):
                found["launch_overhead_ms"] = sampler.launch_overhead_ms()
                found["reformats"] = _reformats(sampler.opened) if row else None
            return found

        found, refused = self._graph_or_plain(measured)
        return {**found, "graph_refused": refused}

    def sampler(self, plan: bytes) -> EventSampler:
        """With graphs where they can be had."""
        return self._graph_or_plain(lambda graph: self._open(plan, graph=graph))[0]

    def copies(self, plan: bytes) -> dict[str, Any]:
        """See :func:`hwloop.device.trt_probes.copies`."""

        def measured(graph: bool) -> dict[str, Any]:
            with (
                closing(self._open(plan, graph=graph, round_trip=True)) as copying,
                closing(self._open(plan, graph=graph)) as staying,
            ):
                return trt_probes.copies(copying, staying)

        return self._graph_or_plain(measured)[0]

    def launch_floor(self, plan: bytes) -> dict[str, Any]:
        """See :func:`hwloop.device.trt_probes.launch_floor`."""

        def measured(graph: bool) -> dict[str, Any]:
            with closing(self._open(plan, graph=graph, runs=1)) as single:
                if not graph:
                    return trt_probes.launch_floor(single, None)
                runs = trt_probes.RUNS_PER_GRAPH
                with closing(self._open(plan, graph=True, runs=runs)) as grouped:
                    return trt_probes.launch_floor(single, grouped)

        return self._graph_or_plain(measured)[0]

    def _compared(
        self, plans: tuple[bytes, bytes], protocol: dict[str, Any], *, graph: bool
    ) -> dict[str, Any]:
        runs: list[int | None] = [None, None]
        shares: tuple[list[list[float]], ...] = ([], [])

        def opener(side: int) -> EventSampler:
            sampler = self._open(plans[side], graph=graph, runs=runs[side])
            runs[side] = sampler.runs_per_graph  # found once, the same in every round
            shares[side].append(sampler.host_shares)
            return sampler

        found = harness.compare(lambda: opener(0), lambda: opener(1), protocol, clock=self._clock)
        return {
            **found,
            "clock": "gpu",
            "cuda_graph": graph,
            "runs_per_graph": runs[0],
            "host_share": max(median(value for part in side for value in part) for side in shares),
        }

    def _graph_or_plain(self, measure: Callable[[bool], T]) -> tuple[T, str | None]:
        """``measure(graph)`` with graphs, or all of it again without, and why."""
        refused: str | None = None
        if self._use_graph:
            try:
                return measure(True), None
            except GraphRefused as error:
                refused = str(error)
        return measure(False), refused

    def _open(
        self, plan: bytes, *, graph: bool, runs: int | None = None, round_trip: bool = False
    ) -> EventSampler:
        opened = OpenEngine(plan, trt=self._trt, cuda=self._cuda)
        return EventSampler(
            opened,
            cuda=self._cuda,
            use_graph=graph,
            runs_per_graph=runs,
            work=opened.round_trip if round_trip else None,
            clock=self._clock,
        )


def _reformats(opened: OpenEngine) -> int | None:
    found = trt_audit.engine_audit(opened.describe())
    return int(found["reformats"]) if found["detailed"] else None
