"""The Python API: the same names as the command's options.

import hwloop

report = hwloop.optimize(max_drop=0.01, run="runs/demo")
module = hwloop.load("runs/demo")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hwloop.errors import UsageError
from hwloop.measure import bench as benching
from hwloop.measure.bench_targets import compare_on
from hwloop.measure.profile_file import resolve
from hwloop.measure.progress import Progress
from hwloop.report.facts import write_report
from hwloop.run.folder import RunFolder
from hwloop.run.options import (
    a_flag,
    a_host,
    a_progress,
    path_text,
    run_folder,
    settings_of,
    target_name,
)
from hwloop.run.result import Result
from hwloop.run.settings import Settings

if TYPE_CHECKING:  # to measure a file takes no torch, and importing it takes a second
    from torch import nn

    from hwloop.task import Task

ModelLike: TypeAlias = "str | nn.Module | Callable[[], nn.Module]"
TaskLike: TypeAlias = "str | Task | Callable[[], Task]"

DEFAULT_MAX_DROP = 0.01


def optimize(
    model: ModelLike | None = None,
    *,
    task: TaskLike | None = None,
    target: str | None = None,
    host: str | None = None,
    simulate: bool = False,
    run: str | Path = "hwloop-run",
    data: str | Path | None = None,
    max_drop: float | None = DEFAULT_MAX_DROP,
    max_latency_ms: float | None = None,
    min_speedup: float | None = None,
    agent: str = "dqn",
    reward: str = "goal",
    lam: float | None = None,
    evaluations: int = 48,
    time_limit_s: float | None = None,
    seed: int = 0,
    table: str | Path | None = None,
    loop_steps: int | None = None,
    finalists: int = 8,
    final_steps: int = 600,
    finish_s: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Find the fastest network within the goal; repeat the call to resume an interrupted one.

    Args:
        model: the trained network, a class or a function that returns it, its SPEC, or None for
            the task's own.
        task: the data and the metric: a Task, a class or a function that returns one, a shipped
            name or a SPEC. Without a model it may be left out: the demo.
        target: a profile's name or path; HWLOOP_TARGET or cpu when it is None.
        host: measure at the other end of ``ssh`` to user@host:port.
        simulate: compute latencies from the target's datasheet; every figure says so.
        run: folder of the run; everything is kept there.
        data: folder of the data set, for shipped tasks that read one.
        max_drop: largest loss of the metric, absolute (0.01 = one point of accuracy). It holds
            beside the other goals as well; None lifts it.
        max_latency_ms, min_speedup: latency goals; goals may be combined.
        agent: one of ``hwloop.search.methods.METHODS``.
        reward, lam: "goal", or "linear": accuracy - lam * latency, relative to the baseline's
            (lam is 0.1 unless it is given).
        evaluations: candidates to evaluate for real.
        time_limit_s: end the search after so many seconds; the finals come on top.
        table: file of a latency table to use and extend, instead of the run's own.
        loop_steps: distillation of each candidate of the search; None for as many as rank
            candidates best for their time: none where there are batch norms to renew, else 40.
        final_steps: gradient steps of a full distillation, of 64 samples each. The usual settings
            get one, a candidate of each round of the search, and what the finals pick; a second
            and a third one go on from it.
        finalists: full distillations after the search.
        finish_s: go on with them for so many seconds instead, up to nine times final_steps each,
            as long as that is expected to gain.

    A run may be called again with more evaluations, finalists, final_steps or time: it goes on
    from where it is. With any other change it is refused, also when the weights, the data or the
    code of the metric are no longer what they were.

    Returns:
        The value of ``report.json``.

    Raises:
        HwloopError: with a message for the user and, where there is one, the fix in ``hint``.
    """
    # What the signature names is passed on by its name, whatever is added to it.
    options = {name: value for name, value in locals().items() if name not in ("run", "progress")}
    progress = a_progress(progress)
    settings = settings_of(**options)
    folder = RunFolder(run_folder(run))
    folder.check()
    result = _run(settings, model, task, folder=folder, progress=progress)
    report = write_report(folder, result)
    folder.event("finished", goal_met=report["goal"]["met"])
    return report


def load(
    run: str | Path,
    *,
    model: ModelLike | None = None,
    task: TaskLike | None = None,
    trust: bool = False,
) -> nn.Module:
    """The best network of a run so far: rebuilt from the user's own network, then its weights.

    A run folder may come from somebody else, so nothing that it names is imported or called:
    say what the dense network is, or that the folder may be trusted.

    Args:
        run: the run folder, also of a run that was interrupted or still goes on.
        model: the dense network, a class or a function that returns it, or its SPEC.
        task: a task whose ``model()`` is the dense network, where ``model`` is not given.
        trust: run the code that the folder names: its own model and task SPECs.

    Raises:
        UsageError: the folder has no network yet, its files do not belong together, or it names
            code and neither ``model``, ``task`` nor ``trust`` was given.
    """
    from hwloop.run import loading

    return loading.load(RunFolder(run_folder(run)), model=model, task=task, trust=trust)


def bench(
    *files: str | Path,
    target: str | Sequence[str] | None = None,
    host: str | None = None,
    shapes: Mapping[str, Sequence[int]] | Iterable[str] | None = None,
    cross_check: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Compare ONNX files or runs on a target; the first is the baseline of all others.

    A run stands for its best network; a single run is compared with its dense network.

    Args:
        target: a profile's name or path; HWLOOP_TARGET or cpu when it is None. Or several: every
            file is measured on each, in turns of one round, and the first file on the first target
            is the baseline. Each record then has ``target`` and ``runtime``.
        host: of every target.
        shapes: of inputs with dynamic dimensions: ``{"input": (1, 3, 224, 224)}``, or a list like
            ``["input:1x3x224x224"]``. A dynamic batch alone is taken as 1, and the record says so.
        cross_check: the engines are also timed by NVIDIA's own trtexec.

    Raises:
        UsageError: a file that is missing, no ONNX, in several files, or of unknown shape.
        TargetError: the target is lost.
    """
    paths = [Path(path_text("file", file, benching.PATHS)) for file in files]
    several = isinstance(target, Sequence) and not isinstance(target, str)
    names = list(target) if several and target is not None else [target]
    if not names:
        raise UsageError("no target to measure on", "target=('cpu',)")
    profiles = [resolve(target_name(name), host=a_host(host)) for name in names]
    progress, cross_check = a_progress(progress), a_flag("cross_check", cross_check)
    if len(profiles) > 1:
        return compare_on(
            profiles, paths, progress=progress, cross_check=cross_check, shapes=shapes
        )
    return benching.compare(
        paths, profile=profiles[0], progress=progress, cross_check=cross_check, shapes=shapes
    )


def _run(
    settings: Settings,
    model: ModelLike | None,
    task: TaskLike | None,
    *,
    folder: RunFolder,
    progress: Progress,
) -> Result:
    from hwloop.run.stages import run
    from hwloop.task import load_model

    profile = resolve(settings.target, host=settings.host, simulate=settings.simulate)
    plugin = _task(settings.task if task is None else task, data=settings.data)
    return run(
        settings,
        task=plugin,
        module=load_model(plugin, model),
        profile=profile,
        folder=folder,
        progress=progress,
    )


def _task(task: TaskLike, *, data: str | None) -> Task:
    from hwloop.tasks.load import as_task, load_task

    if isinstance(task, str):
        return load_task(task, data=Path(data) if data else None)
    return as_task(task)
