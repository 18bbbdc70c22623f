"""Large things and a board: engines over a slow link, and what scoring segmentation maps takes.

    PYTHONPATH=tests python benchmarks/large.py      (root: the link is slowed down by tc)

Engines of 4, 32 and 256 MiB travel at 4 MB/s with all limits at their defaults. 2,000 inputs of
3x224x224 with outputs of 21x128x128, 2.7 GB in all, are scored here and over ssh; memory is what
host and worker rise above their start, sampled every 10 ms.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from board import Board, board
from common import print_table, write_result
from scoring import MapsTask, Peak, maps_model

from hwloop.measure.profile import TargetProfile
from hwloop.measure.profile_file import load_profile
from hwloop.measure.session import DeviceSession
from hwloop.runtimes.graph import OnnxModel
from hwloop.tasks.score import ScoredSplit

ENGINES_MIB = (4, 32, 256)
LINK = ("rate", "32mbit", "burst", "64kb", "latency", "400ms")
INPUTS = 2000


@contextmanager
def reachable(*, namespace: bool) -> Iterator[tuple[Board, TargetProfile]]:
    """A board, this process's ``ssh`` knowing the way to it."""
    path = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "board"
        folder.mkdir()
        with board(folder, namespace=namespace) as made:
            os.environ["PATH"] = f"{made.folder / 'bin'}:{path}"
            try:
                yield made, load_profile(str(made.profile(Path(name) / "there.toml")))
            finally:
                os.environ["PATH"] = path


def transferred(there: TargetProfile, mib: int) -> dict[str, Any]:
    """An engine of so many MiB, fetched."""
    profile = replace(there, settings={**there.settings, "engine_bytes": mib << 20})
    with DeviceSession(profile) as session:
        before, started = session.state()["pid"], time.monotonic()
        size_bytes = len(session.engine(OnnxModel(maps_model())).data)
        seconds = time.monotonic() - started
        lost = session.state()["pid"] != before
    return {"size_bytes": size_bytes, "seconds": seconds, "worker_lost": lost}


def scored(profile: TargetProfile) -> dict[str, Any]:
    """What scoring takes of memory, in MiB above the start."""
    task, model = MapsTask(INPUTS), OnnxModel(maps_model())
    with DeviceSession(profile) as session:
        before, started = session.state()["pid"], time.monotonic()
        with Peak(os.getpid()) as host, Peak(before) as worker:
            split = ScoredSplit(task, task.search())
            outputs = split.finite_outputs(lambda inputs: session.infer(model, inputs))
            right = split.metric(outputs) == 1.0
            split.upper_drop(outputs, outputs, drop=0.0)
        seconds = time.monotonic() - started
        lost = session.state()["pid"] != before
    memory = {
        f"{name}_{kind}_mib": getattr(peak, f"{kind}_bytes") >> 20
        for name, peak in (("host", host), ("worker", worker))
        for kind in ("resident", "anon")
    }
    return {"right": right, "seconds": seconds, "worker_lost": lost, **memory}


def main() -> None:
    started = time.monotonic()
    with reachable(namespace=True) as (made, there), made.shaped(*LINK):
        engines = {str(mib): transferred(there, mib) for mib in ENGINES_MIB}
    scores = {"local": scored(load_profile("fake"))}
    with reachable(namespace=False) as (_, there):
        scores["ssh"] = scored(there)
    print_table(
        [["engine, MiB", "seconds", "worker lost"]]
        + [[mib, f"{e['seconds']:.1f}", str(e["worker_lost"])] for mib, e in engines.items()]
    )
    print_table(
        [["scoring", "host, MiB (own)", "worker, MiB (own)", "seconds"]]
        + [
            [
                name,
                f"{s['host_resident_mib']} ({s['host_anon_mib']})",
                f"{s['worker_resident_mib']} ({s['worker_anon_mib']})",
                f"{s['seconds']:.0f}",
            ]
            for name, s in scores.items()
        ]
    )
    write_result("large", {"engines": engines, "scoring": scores}, started=started)


if __name__ == "__main__":
    main()
