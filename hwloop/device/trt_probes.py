"""What a figure of an engine leaves out, measured beside it: copies, and the host's launches."""

from __future__ import annotations

from statistics import median
from typing import Any

from hwloop.device.trt_timing import EventSampler

SAMPLE_MS = 5.0
PAIRS = 21
RUNS_PER_GRAPH = 32


def copies(copying: EventSampler, staying: EventSampler) -> dict[str, Any]:
    """A run with its inputs copied in and its outputs copied out, beside one without.

    Returns:
        with_copies_ms, without_copies_ms: per run; copied_bytes: both ways together.
    """
    with_ms, without_ms = _medians_ms(copying, staying)
    return {
        "with_copies_ms": with_ms,
        "without_copies_ms": without_ms,
        "copied_bytes": sum(tensor.size_bytes for tensor in copying.opened.tensors),
    }


def launch_floor(single: EventSampler, grouped: EventSampler | None) -> dict[str, Any]:
    """A run that is launched alone, beside one of a graph of RUNS_PER_GRAPH.

    Args:
        grouped: None where there are no graphs.

    Returns:
        single_ms, in_graph_ms (None without graphs), runs_per_graph, and the host_share of the
        single launches: near 1 and above it, single_ms is the host's time and not the GPU's.
    """
    single_ms, grouped_ms = _medians_ms(single, single if grouped is None else grouped)
    return {
        "single_ms": single_ms,
        "in_graph_ms": None if grouped is None else grouped_ms,
        "runs_per_graph": RUNS_PER_GRAPH,
        "host_share": median(single.host_shares),
    }


def _medians_ms(first: EventSampler, second: EventSampler) -> tuple[float, float]:
    """Milliseconds per run of both, sampled in turn so that drift hits both."""
    samplers = first, second
    loops = [sampler.filling(SAMPLE_MS) for sampler in samplers]
    samples: tuple[list[float], list[float]] = ([], [])
    for _ in range(PAIRS):
        for index in (0, 1):
            samples[index].append(samplers[index].sample_ms(loops[index]))
    return median(samples[0]), median(samples[1])
