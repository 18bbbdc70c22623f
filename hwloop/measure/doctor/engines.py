"""What only the hardware can tell: five checks that build engines, for the first one with a board.

Each has a deadline and its own lines; one that fails does not keep the next from being made. The
figures behind the lines go into the bundle (:mod:`hwloop.measure.doctor.bundle`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from hwloop.errors import CandidateError, EnvironmentProblem, HwloopError, TargetError
from hwloop.findings import HOST_BOUND, HOST_BOUND_SHARE
from hwloop.measure.doctor import said
from hwloop.measure.doctor.check import FAIL, OK, WARN, Check, numbers
from hwloop.measure.profile import TargetProfile, rules_for
from hwloop.measure.progress import Progress
from hwloop.measure.table import EMPTY, REFERENCE
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.known import writing
from hwloop.runtimes.rowkinds import INT8_KINDS

BUILD_TIMEOUT_S = 300.0
"""For one engine. The largest is the demo's: a minute or two on the smallest board."""

KINDS_BUDGET_S = 900.0
ENERGY_S = 5.0
SLOW_IMPORT_S = 30.0
MANY_REFORMATS_SHARE = 0.25
LEAST_RISE = 1.05  # of the power under load: less is no reading of the load
SHOWN_KINDS = 3
SHOWN_REASON = 200
ORIN, FAULTY_L4T = "tegra234", (39,)
KNOWN_FAULT = "known on an Orin with JetPack 7.2: github.com/NVIDIA/TensorRT/issues/4832"
LEFT_OUT = "nothing to do: a run measures without them; the bundle is worth sending"
WORTH_SENDING = "worth a report: hwloop doctor --target NAME --bundle FILE.zip"


class Board(Protocol):
    """What is used of a :class:`hwloop.measure.session.DeviceSession`."""

    @property
    def isa(self) -> str: ...
    @property
    def import_s(self) -> dict[str, float]: ...
    def build(self, model: OnnxModel) -> float: ...
    def holding(self, model: OnnxModel) -> AbstractContextManager[Any]: ...
    def launch_floor(self, model: OnnxModel) -> dict[str, Any] | None: ...
    def layer_profile(self, model: OnnxModel) -> dict[str, Any]: ...
    def energy(self, model: OnnxModel, *, seconds: float) -> dict[str, Any] | None: ...


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        name: import, launch_floor, int8_kinds, layers or power.
        checks: its lines.
        result: the figures as they came; None where it could not be made.
    """

    name: str
    checks: tuple[Check, ...]
    result: Any = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every check is given.

    Attributes:
        state: the worker's state, for advice that fits.
        clock: seconds that only go forward.
    """

    profile: TargetProfile
    state: Mapping[str, Any]
    progress: Progress
    clock: Callable[[], float] = time.monotonic


class Line:
    """One open session at a time, opened when it is needed and again after it was lost."""

    def __init__(self, opener: Callable[[], Any]) -> None:
        self._opener = opener
        self._open: Any = None

    def get(self) -> Any:
        """The open session. Raises TargetError, EnvironmentProblem or UsageError."""
        if self._open is None:
            self._open = self._opener().__enter__()
        return self._open

    def close(self) -> None:
        """End it; the next :meth:`get` opens another."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.__exit__(None, None, None)


def examine(line: Line, task: Task) -> list[Finding]:
    """Make the five checks; none raises for what a target does, or lacks."""
    findings = []
    for number, (name, title, check) in enumerate(CHECKS, start=1):
        task.progress.stage(f"{number}/{len(CHECKS)} {title}")
        try:
            findings.append(check(line.get(), task))
        except (HwloopError, ImportError) as error:
            findings.append(_failed(name, title, error))
            if isinstance(error, (TargetError, EnvironmentProblem)):
                line.close()
    return findings


def imports(board: Board, task: Task) -> Finding:
    """How long the system's Python takes to import what is used of it."""
    found = board.import_s
    remote = task.profile.transport == "ssh"
    python = task.profile.python if remote else "Python"
    text = ", ".join(f"{name} in {_seconds(seconds)}" for name, seconds in found.items())
    what = f"{python} imports {text or 'nothing that is timed'}"
    if sum(found.values()) > SLOW_IMPORT_S:
        fix = "the second start is quicker; an NVMe disk in the place of the SD card helps"
        return _finding("import", found, Check(state=WARN, what=what, fix=fix))
    return _finding("import", found, Check(state=OK, what=what))


def launch_floor(board: Board, task: Task) -> Finding:
    """What a launch costs a row as it is timed alone, and in a graph of 32."""
    results, checks = {}, []
    for name, config in (("empty", EMPTY), ("reference", REFERENCE)):
        model = _row(config, board, task)
        with board.holding(model):
            found = results[name] = board.launch_floor(model)
        checks.append(_floor_check(name, found, task))
    return _finding("launch_floor", results, *checks)


def int8_kinds(board: Board, task: Task) -> Finding:
    """One build of every kind of INT8 row: what this TensorRT takes on this GPU."""
    started, results = task.clock(), []
    for done, (kind, config) in enumerate(INT8_KINDS):
        task.progress.advance(done, len(INT8_KINDS), kind)
        record: dict[str, Any] = {"kind": kind, "built": None, "build_s": None, "reason": None}
        if task.clock() - started < KINDS_BUDGET_S:
            model = _row(config, board, task)
            try:
                with board.holding(model):
                    record.update(built=True, build_s=board.build(model))
            except CandidateError as error:
                record.update(built=False, reason=str(error))
        results.append(record)
    return _finding("int8_kinds", results, *_kinds_checks(results, task))


def layers(board: Board, task: Task) -> Finding:
    """Layers of the demo's dense network that only change a layout or a type."""
    found = board.layer_profile(_dense(board, task))
    count, reformats = said.number(found, "layers"), said.number(found, "reformats")
    share = said.number(found, "reformat_share")
    source = said.text(found, "source") or "unknown source"
    what = (
        f"the demo's dense network: {_count(reformats)} of {_count(count)} layers only change a "
        f"layout or a type, {_percent(share)} of the time ({source})"
    )
    many = share is None or share > MANY_REFORMATS_SHARE
    check = Check(state=WARN if many else OK, what=what, fix=WORTH_SENDING if many else None)
    return _finding("layers", found, check)


def power(board: Board, task: Task) -> Finding:
    """The rails before and under the load of the demo's dense network."""
    found = board.energy(_dense(board, task), seconds=ENERGY_S)
    if found is None:
        what = "power cannot be read there: energy stays empty in reports"
        fix = "in a container: mount /sys, or measure on the host"
        return _finding("power", None, Check(state=WARN, what=what, fix=fix))
    idle, busy = said.number(found, "idle_mw"), said.number(found, "mean_mw")
    rails = ", ".join(said.texts(found, "rails")) or said.text(found, "source") or "unknown"
    energy = said.number(found, "energy_mj")
    each = "unknown" if energy is None else f"{energy:.2f} mJ"
    what = f"power {_watts(idle)} idle, {_watts(busy)} under load ({rails}), {each} an inference"
    if busy is None or (idle is not None and busy < idle * LEAST_RISE):
        what += ": the load does not show"
        return _finding("power", found, Check(state=WARN, what=what, fix=WORTH_SENDING))
    return _finding("power", found, Check(state=OK, what=what))


CHECKS: tuple[tuple[str, str, Callable[[Any, Task], Finding]], ...] = (
    ("import", "what the board's Python imports", imports),
    ("launch_floor", "the launch floor of rows", launch_floor),
    ("int8_kinds", "every kind of INT8 row is built", int8_kinds),
    ("layers", "the dense demo network, layer by layer", layers),
    ("power", "power at idle and under load", power),
)


def _failed(name: str, title: str, error: Exception) -> Finding:
    text = error.message if isinstance(error, HwloopError) else str(error)
    what, _, advice = text.partition("; ")
    fix = (error.hint if isinstance(error, HwloopError) else "") or advice or None
    state = WARN if isinstance(error, CandidateError) else FAIL
    line = f"{title}: not known: {what[:SHOWN_REASON]}"
    return Finding(name=name, checks=(Check(state=state, what=line, fix=fix),))


def _finding(name: str, result: Any, *checks: Check) -> Finding:
    return Finding(name=name, checks=checks, result=result)


def _row(config: Any, board: Board, task: Task) -> OnnxModel:
    """A row as the table builds it."""
    runtime = writing(rules_for(task.profile, board.isa).recipe)
    return OnnxModel(runtime.row_graph(config), (config,), row=True)


def _dense(board: Board, task: Task) -> OnnxModel:
    from hwloop.compress.subject import subject
    from hwloop.task import load_model
    from hwloop.tasks.load import load_task

    demo = load_task("demo")
    found = subject(
        demo, load_model(demo, None), rules_for(task.profile, board.isa), isa=board.isa, name="demo"
    )
    return found.model(found.dense_candidate, found.graph)


def _floor_check(name: str, found: Mapping[str, Any] | None, task: Task) -> Check:
    if found is None:
        return Check(state=WARN, what=f"the {name} row: this runtime knows no launch floor")
    alone, together = said.number(found, "single_ms"), said.number(found, "in_graph_ms")
    runs, share = said.number(found, "runs_per_graph"), said.number(found, "host_share")
    what = (
        f"the {name} row: {_microseconds(alone)} alone, "
        f"{_microseconds(together)} each of {_count(runs)} in one graph"
    )
    if share is None or share <= HOST_BOUND_SHARE:
        return Check(state=OK, what=what)
    fix = "sudo cpupower frequency-set -g performance   (there)"
    if said.at(task.state, "jetson") is not None:
        fix = "sudo jetson_clocks   (there: it locks the CPU's clock too)"
    return Check(state=WARN, what=f"{what}; {HOST_BOUND}: the CPU takes {share:.0%} of it", fix=fix)


def _kinds_checks(results: list[dict[str, Any]], task: Task) -> list[Check]:
    built = [record for record in results if record["built"]]
    skipped = [record["kind"] for record in results if record["built"] is None]
    took = _seconds(sum(record["build_s"] for record in built))
    what = f"{len(built)} of {len(results)} kinds of INT8 rows are built ({took})"
    checks = [Check(state=OK if len(built) == len(results) else WARN, what=what)]
    if skipped:
        late = f"after {KINDS_BUDGET_S / 60:.0f} minutes these were left out: {_some(skipped)}"
        checks.append(Check(state=WARN, what=late, fix="repeat it: the timing cache is warm now"))
    by_reason: dict[str, list[str]] = {}
    for record in results:
        if record["built"] is False:
            reason = " ".join(str(record["reason"]).split())[:SHOWN_REASON]
            by_reason.setdefault(reason, []).append(record["kind"])
    l4t = numbers(said.text(task.state, "jetson.l4t") or "")
    known = said.text(task.state, "jetson.soc") == ORIN and l4t[:1] >= FAULTY_L4T
    for reason, kinds in by_reason.items():
        fix = f"{KNOWN_FAULT}; a run measures without them" if known else LEFT_OUT
        text = f"INT8 is refused for {_some(kinds)}: {reason}"
        checks.append(Check(state=WARN, what=text, fix=fix))
    return checks


def _some(kinds: list[str]) -> str:
    more = f" and {len(kinds) - SHOWN_KINDS} more" if len(kinds) > SHOWN_KINDS else ""
    return "; ".join(f"[{kind}]" for kind in kinds[:SHOWN_KINDS]) + more


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def _microseconds(value_ms: float | None) -> str:
    return "unknown" if value_ms is None else f"{value_ms * 1000:.1f} us"


def _watts(value_mw: float | None) -> str:
    return "unknown" if value_mw is None else f"{value_mw / 1000:.1f} W"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def _count(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f}"
