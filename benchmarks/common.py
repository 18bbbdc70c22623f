"""What the studies share: the demo as a subject, its table, and how results are written."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from hwloop.compress import space
from hwloop.compress.recover import RECALIBRATED, Recovery
from hwloop.compress.subject import Subject, subject
from hwloop.compress.training import Schedule
from hwloop.device import state
from hwloop.files import write_atomically
from hwloop.measure.predict import Predictor
from hwloop.measure.profile import Protocols, rules_for
from hwloop.measure.profile_file import load_profile
from hwloop.measure.progress import ConsoleProgress
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.measure.table import LatencyTable
from hwloop.run import calibrate, digests, features, identity, sensitivity
from hwloop.run.clock import Stopwatch
from hwloop.run.evaluate import Evaluator, evaluator_of
from hwloop.run.memory import Figures
from hwloop.search.problem import Problem
from hwloop.task import Task, load_model
from hwloop.tasks.load import load_task

RESULTS = Path(__file__).parent / "results"
CACHE = Path(__file__).parent / ".cache"


def write_result(name: str, value: dict[str, Any], *, started: float) -> None:
    """Write ``results/NAME.json`` with the command, the machine and the versions."""
    record = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "wall_s": round(time.monotonic() - started, 1),
        "machine": {
            "cpu": state.cpu_model(),
            "isa": state.isa(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "versions": {name: metadata.version(name) for name in ("torch", "onnxruntime", "numpy")},
        **value,
    }
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / f"{name}.json", (json.dumps(record, indent=1) + "\n").encode())
    print(f"written: benchmarks/results/{name}.json")


def read_result(name: str) -> dict[str, Any]:
    """What ``results/NAME.json`` has; empty where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


CPU_PROFILE = """description = "ONNX Runtime on this machine's CPU, {name}"
runtime = "onnxruntime"
transport = "local"
verified = true

[settings]
threads = 1

[space]
"""


def cpu_profile(path: Path, name: str, **space: list[str]) -> str:
    """Write the profile of this CPU with lists of its own under ``[space]``; its path."""
    lists = "".join(f"{key} = {json.dumps(words)}\n" for key, words in space.items())
    write_atomically(path, (CPU_PROFILE.format(name=name) + lists).encode())
    return str(path)


def print_table(rows: list[list[str]]) -> None:
    """Columns aligned with spaces."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """A network on the CPU target, prepared as ``hwloop optimize`` prepares it."""

    task: Task
    subject: Subject
    session: DeviceSession
    evaluator: Evaluator
    predictor: Predictor
    protocols: Protocols
    store: Store

    def problem(self, **limits: Any) -> Problem:
        """The search's problem with these limits (budget_ms, max_drop)."""
        return Problem(
            network_features=features.features(self.subject.network),
            masks=self.subject.masks,
            predict_ms=self.predictor,
            baseline_ms=self.evaluator.baseline.latency_ms,
            damage=sensitivity.damage(self.evaluator, ConsoleProgress(), self.subject.masks),
            menu_features=space.menu_features(self.subject.rules),
            **limits,
        )


@contextmanager
def prepared_demo(name: str, *, loop_schedule: Schedule = RECALIBRATED) -> Iterator[Bench]:
    """The demo; see :func:`prepared`."""
    task = load_task("demo")
    module = load_model(task, None)
    with prepared(task, module, name, loop_schedule=loop_schedule) as bench:
        yield bench


@contextmanager
def prepared(
    task: Task,
    module: nn.Module,
    name: str,
    *,
    loop_schedule: Schedule = RECALIBRATED,
    max_drop: float | None = None,
    seed: int = 0,
    target: str = "cpu",
    path: Path | None = None,
) -> Iterator[Bench]:
    """Rows, calibration networks and probes come from a store where it has them.

    Args:
        path: of the store, ``.cache/NAME.sqlite`` unless given; a run's own has them all.
    """
    profile = load_profile(target)
    CACHE.mkdir(exist_ok=True)
    with DeviceSession(profile) as session, Store(path or CACHE / f"{name}.sqlite") as store:
        found = subject(task, module, rules_for(profile, session.isa), isa=session.isa, name=name)
        inputs = digests.inputs_of(task, module, found.float_graph, profile)
        evaluator = evaluator_of(
            found,
            session,
            figures=Figures(store, identity.key_of(inputs)),
            recovery=Recovery(task, module, seed=seed),
            loop_schedule=loop_schedule,
            max_drop=max_drop,
            protocol=profile.protocols.loop,
            simulated=False,
            clock=Stopwatch(),
        )
        table = LatencyTable(store, session.fingerprint, profile.protocols.row)
        predictor = calibrate.fitted_predictor(evaluator, table, ConsoleProgress(), seed=0)
        yield Bench(
            task=task,
            subject=found,
            session=session,
            evaluator=evaluator,
            predictor=predictor,
            protocols=profile.protocols,
            store=store,
        )
