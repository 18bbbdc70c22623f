"""The Python API: the same names as the command's options.

import hwloop

report = hwloop.optimize(max_drop=0.01, run="runs/demo")
module = hwloop.load("runs/demo")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from hwloop import benching
from hwloop.compress.apply import compress
from hwloop.errors import UsageError, closest
from hwloop.export import export_onnx
from hwloop.files import RunFolder, read_json, sha256
from hwloop.model import describe
from hwloop.profile import resolve
from hwloop.progress import Progress
from hwloop.records import Candidate, Goal
from hwloop.report import write_report
from hwloop.runs import Settings
from hwloop.search.methods import METHODS
from hwloop.space import SpaceRules
from hwloop.stages import run as run_stages
from hwloop.task import Task, load_model
from hwloop.tasks import load_task

DEFAULT_MAX_DROP = 0.01


def optimize(
    model: str | nn.Module | None = None,
    *,
    task: str | Task = "demo",
    target: str = "cpu",
    host: str | None = None,
    simulate: bool = False,
    run: str | Path = "hwloop-run",
    data: str | Path | None = None,
    max_drop: float | None = None,
    max_latency_ms: float | None = None,
    min_speedup: float | None = None,
    agent: str = "dqn",
    reward: str = "goal",
    lam: float = 0.1,
    evaluations: int = 48,
    time_limit_s: float | None = None,
    seed: int = 0,
    table: str | Path | None = None,
    loop_steps: int = 20,
    finalists: int = 4,
    final_steps: int = 300,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Find the fastest network within the goal; repeat the call to resume an interrupted one.

    Args:
        model: the trained network, its SPEC, or None for the task's own.
        task: the data and the metric: a Task, a shipped name or a SPEC.
        target: a profile's name or path.
        host: measure at the other end of ``ssh`` to user@host:port.
        simulate: compute latencies from the target's datasheet; every figure says so.
        run: folder of the run; everything is kept there.
        data: folder of the data set, for shipped tasks that read one.
        max_drop: largest loss of the metric, absolute (0.01 = one point of accuracy). The default
            when no goal is given: 0.01.
        max_latency_ms, min_speedup: latency goals; goals may be combined.
        agent: one of ``hwloop.search.methods.METHODS``.
        reward, lam: "goal", or "linear": accuracy - lam * latency, relative to the baseline's.
        evaluations: candidates to evaluate for real.
        time_limit_s: end the search after so many seconds; the finals come on top.
        table: file of a latency table to use and extend, instead of the run's own.
        loop_steps, final_steps: distillation of each candidate, and of the finalists.
        finalists: candidates that are fully distilled.

    Returns:
        The value of ``report.json``.

    Raises:
        HwloopError: with a message for the user and, where there is one, the fix in ``hint``.
    """
    settings = settings_of(
        model,
        task=task,
        target=target,
        host=host,
        simulate=simulate,
        data=data,
        max_drop=max_drop,
        max_latency_ms=max_latency_ms,
        min_speedup=min_speedup,
        agent=agent,
        reward=reward,
        lam=lam,
        evaluations=evaluations,
        time_limit_s=time_limit_s,
        seed=seed,
        table=table,
        loop_steps=loop_steps,
        finalists=finalists,
        final_steps=final_steps,
    )
    profile = resolve(target, host=host, simulate=simulate)
    plugin = load_task(task, data=Path(data) if data else None) if isinstance(task, str) else task
    module = _module(model, plugin)
    folder = RunFolder(Path(run))
    result = run_stages(
        settings,
        task=plugin,
        module=module.eval(),
        profile=profile,
        folder=folder,
        progress=progress or Progress(),
    )
    report = write_report(folder, result)
    folder.event("finished", goal_met=report["goal"]["met"])
    return report


def load(
    run: str | Path, *, model: str | nn.Module | None = None, task: Task | None = None
) -> nn.Module:
    """The best network of a run so far: rebuilt from the user's own factory, then its weights.

    Args:
        run: the run folder, also of a run that was interrupted or still goes on.
        model, task: needed only when the run was started from objects instead of SPECs.

    Raises:
        UsageError: the folder has no network yet, or its files do not belong together.
    """
    from safetensors.torch import load as load_tensors

    best = RunFolder(Path(run)).best.resolve()
    note = read_json(best / "candidate.json", what="candidate")
    state = (best / "model.safetensors").read_bytes()
    if sha256(state) != note["safetensors_sha256"]:
        raise UsageError(f"{best / 'model.safetensors'} was altered", "restore it from a copy")
    data = Path(note["data"]) if note["data"] else None
    plugin = task if task is not None else load_task(note["task"], data=data)
    dense = _module(model if model is not None else note["model"], plugin).eval()
    example = plugin.example()
    network = describe(dense, example, export_onnx(dense, example), name=note["task"])
    candidate = Candidate.from_json(note["candidate"])
    rules = SpaceRules(align=int(note["align"]))
    module = compress(dense, example, network, candidate=candidate, rules=rules)
    module.load_state_dict(load_tensors(state))
    return module.eval()


def bench(
    *files: str | Path,
    target: str = "cpu",
    host: str | None = None,
    cross_check: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Compare ONNX files or runs on a target; the first is the baseline of all others.

    A run stands for its best network; a single run is compared with its dense network. With
    ``cross_check`` the engines are also timed by NVIDIA's own trtexec.

    Raises:
        UsageError: a file that is missing or no ONNX.
        TargetError: the target is lost.
    """
    return benching.compare(
        [Path(file) for file in files],
        profile=resolve(target, host=host),
        progress=progress or Progress(),
        cross_check=cross_check,
    )


def settings_of(
    model: str | nn.Module | None,
    *,
    task: str | Task,
    target: str,
    data: str | Path | None,
    max_drop: float | None,
    max_latency_ms: float | None,
    min_speedup: float | None,
    table: str | Path | None,
    **options: Any,
) -> Settings:
    """The options of :func:`optimize` as the record that is stored with the run.

    Raises:
        UsageError: an option has an impossible value.
    """
    settings = Settings(
        model=_spec_of(model),
        task=task if isinstance(task, str) else f"{type(task).__module__}:{type(task).__name__}",
        data=None if data is None else str(data),
        target=target,
        goal=_goal(max_drop, max_latency_ms, min_speedup),
        table=None if table is None else str(table),
        **options,
    )
    _check(settings)
    return settings


def _goal(max_drop: float | None, max_latency_ms: float | None, min_speedup: float | None) -> Goal:
    if max_drop is None and max_latency_ms is None and min_speedup is None:
        max_drop = DEFAULT_MAX_DROP
    limits = {"max-drop": max_drop, "max-latency-ms": max_latency_ms, "min-speedup": min_speedup}
    for name, value in limits.items():
        least = 0.0 if name != "max-drop" else -1e-12
        if value is not None and not value > least:
            raise UsageError(f"--{name} is {value}: it must be above zero", f"--{name} 0.01")
    return Goal(max_drop=max_drop, max_latency_ms=max_latency_ms, min_speedup=min_speedup)


def _check(settings: Settings) -> None:
    if settings.agent not in METHODS:
        raise UsageError(
            f"unknown agent {settings.agent!r}: {closest(settings.agent, METHODS)}",
            "hwloop optimize --help",
        )
    if settings.reward not in ("goal", "linear"):
        raise UsageError(
            f"unknown reward {settings.reward!r}: {closest(settings.reward, ('goal', 'linear'))}",
            "--reward goal or --reward linear",
        )
    least = {"evaluations": 1, "finalists": 1, "loop_steps": 0, "final_steps": 0}
    for name, smallest in least.items():
        if getattr(settings, name) < smallest:
            raise UsageError(
                f"{name.replace('_', ' ')} is {getattr(settings, name)}: at least {smallest}",
                f"--{name.replace('_', '-')} {smallest}",
            )
    if settings.simulate and settings.table is not None:
        raise UsageError(
            "simulated latencies never enter a table of measured rows", "leave --table out"
        )
    if settings.time_limit_s is not None and not settings.time_limit_s > 0:
        raise UsageError("the time limit must be above zero", "--time-limit 10m")


def _spec_of(model: str | nn.Module | None) -> str | None:
    if model is None or isinstance(model, str):
        return model
    return f"{type(model).__module__}:{type(model).__name__}"


def _module(model: str | nn.Module | None, task: Task) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    return load_model(task, model)
