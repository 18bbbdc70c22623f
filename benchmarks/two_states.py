"""The two states of a shared machine, as a picture: docs/two_states.svg.

    python benchmarks/two_states.py [SECONDS]

Single runs of the demo's dense network, on the machine as it is and beside a process that uses 30 %
of the same core in slices of 2 ms, by two clocks: the wall's, and the thread's own.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import write_result
from disturb import disturbed
from numpy.typing import NDArray

from hwloop.compress.export import export_onnx
from hwloop.device.ort import OrtRuntime
from hwloop.files import write_atomically
from hwloop.stats import QUIET
from hwloop.task import load_model
from hwloop.tasks.load import load_task

PICTURE = Path(__file__).parents[1] / "docs" / "two_states.svg"
WIDTH, ROW, LEFT, TOP = 720, 110, 150, 34
INNER = WIDTH - LEFT - 20
BINS = 140
STATES = {
    "alone": ("quiet", "wall", "#3b7a57"),
    "beside others,\nthe wall's clock": ("disturbed", "wall", "#b03a2e"),
    "beside others,\nthe thread's clock": ("disturbed", "thread", "#1f5f99"),
}


def recorded(run: Callable[[], None], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of single runs, by both clocks."""
    found: dict[str, list[float]] = {"wall": [], "thread": []}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        wall, thread = time.perf_counter(), time.thread_time()
        run()
        found["thread"].append((time.thread_time() - thread) * 1000)
        found["wall"].append((time.perf_counter() - wall) * 1000)
    return found


def figures(values: list[float]) -> dict[str, float]:
    return {
        "runs": len(values),
        "quiet_ms": float(np.quantile(values, QUIET)),
        "median_ms": float(np.median(values)),
        "mean_ms": float(np.mean(values)),
    }


def picture(series: dict[str, dict[str, list[float]]]) -> str:
    """How often a run took how long, by state and clock; times are on a logarithmic scale."""
    low = 0.97 * min(min(by_clock["thread"]) for by_clock in series.values())
    high = float(np.quantile(series["disturbed"]["wall"], 0.995))
    edges = np.geomspace(low, high, BINS + 1)

    def x(ms: float) -> float:
        return LEFT + INNER * float(np.log(ms / low) / np.log(high / low))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {TOP + 3 * ROW + 44}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (name, (state, clock, colour)) in enumerate(STATES.items()):
        base = TOP + (number + 1) * ROW - 22
        parts += row(name, series[state][clock], edges, x, base=base, colour=colour)
    bottom = TOP + 3 * ROW
    for ms in np.geomspace(low, high, 8):
        parts.append(f'<text x="{x(float(ms)) - 12:.1f}" y="{bottom}">{ms:.2f}</text>')
    parts.append(
        f'<text x="{LEFT}" y="{bottom + 24}">milliseconds of a single run (logarithmic); '
        "height: root of the number of runs</text></svg>"
    )
    return "\n".join(parts) + "\n"


def row(
    name: str,
    values: list[float],
    edges: NDArray[np.float64],
    x: Callable[[float], float],
    *,
    base: int,
    colour: str,
) -> list[str]:
    """One state by one clock: the outline of its runs, its name, and two of its figures.

    Args:
        values: milliseconds of single runs.
        edges: (BINS + 1,) milliseconds.
        x: from milliseconds to a place in the picture.
        base: the place, from the top, of no runs.
    """
    heights = np.sqrt(np.histogram(values, edges)[0])  # so that the rare state is visible
    heights = heights / heights.max() * (ROW - 34)
    points = [
        f"{x(float(edge)):.1f},{base - height:.1f}"
        for edge, height in zip(np.sqrt(edges[1:] * edges[:-1]), heights, strict=True)
    ]
    outline = " ".join([f"{LEFT},{base}", *points, f"{LEFT + INNER},{base}"])
    parts = [f'<polygon points="{outline}" fill="{colour}" fill-opacity="0.35"/>']
    for line, text in enumerate(name.split("\n")):
        parts.append(f'<text x="8" y="{base - 30 + 16 * line}">{text}</text>')
    for label, ms, up in (
        ("5 % quantile", figures(values)["quiet_ms"], 0),
        ("median", figures(values)["median_ms"], 14),
    ):
        parts.append(
            f'<path d="M{x(ms):.1f} {base} V{base - ROW + 30 - up}" stroke="{colour}"/>'
            f'<text x="{x(ms) + 4:.1f}" y="{base - ROW + 38 - up}" font-size="11">'
            f"{label} {ms:.3f}</text>"
        )
    return parts


def main(seconds: float) -> None:
    started = time.monotonic()
    task = load_task("demo")
    graph = export_onnx(load_model(task, None), task.example())
    runtime = OrtRuntime({"threads": 1})
    run = runtime.bound_run(runtime.build(graph, {}))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    recorded(run, 0.5)
    series = {"quiet": recorded(run, seconds)}
    with disturbed(duty=0.3, slice_ms=2.0):  # on the core that is left: this one
        series["disturbed"] = recorded(run, seconds)
    write_atomically(PICTURE, picture(series).encode())
    found = {
        state: {clock: figures(values) for clock, values in by_clock.items()}
        for state, by_clock in series.items()
    }
    write_result("two_states", {"seconds": seconds, "states": found}, started=started)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 6.0)
