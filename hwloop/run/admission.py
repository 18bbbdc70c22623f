"""May this run begin, or go on? Everything that is asked before a target is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hwloop.compress.export import check_exported
from hwloop.compress.fp16_range import Kept
from hwloop.compress.subject import Subject, check_has_choices, dense_graph, subject
from hwloop.device import state
from hwloop.errors import UsageError
from hwloop.measure.profile import TargetProfile, rules_for
from hwloop.measure.progress import Progress
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import check_can_be_store
from hwloop.run import config, digests, target_limits
from hwloop.run.folder import RunFolder
from hwloop.run.memory import Figures, Notes
from hwloop.run.settings import Settings
from hwloop.runtimes.fp16 import FALLBACKS
from hwloop.task import Task, validate_task
from hwloop.tasks import sanity


@dataclass(frozen=True, kw_only=True, eq=False)
class About:
    """What a run is about, as far as that is known before its target is asked.

    Attributes:
        graph: the dense network in FP32.
        inputs: what the run is about; see :mod:`hwloop.run.identity`.
        stored: the settings with portable paths.
        warnings: what is doubtful about the task, its data or the goal.
    """

    task: Task
    module: nn.Module
    name: str
    profile: TargetProfile
    folder: RunFolder
    graph: bytes
    inputs: dict[str, Any]
    stored: Settings
    warnings: tuple[str, ...]

    def subject(self, isa: str, fp16: Kept | None = None) -> Subject:
        """The network on the target, by its instruction sets and what was decided to stay FP32.

        Raises:
            UsageError: nothing in it can be decided there.
        """
        found = subject(
            self.task,
            self.module,
            rules_for(self.profile, isa),
            isa=isa,
            name=self.name,
            graph=self.graph,
            fp16=fp16,
        )
        check_has_choices(found)
        return found


def admitted(
    settings: Settings,
    *,
    task: Task,
    module: nn.Module,
    profile: TargetProfile,
    folder: RunFolder,
    progress: Progress,
) -> tuple[About, Subject]:
    """The run, and its network on the target as far as that is known here; nothing is written.

    Raises:
        UsageError: the task, the network, the goal or the folder is wrong.
    """
    folder.check()
    progress.say(f"checking {task.name}")
    graph, inputs, warnings = checked(settings, task, module, profile)
    about = About(
        task=task,
        module=module,
        name=settings.model or task.name,
        profile=profile,
        folder=folder,
        graph=graph,
        inputs=inputs,
        stored=config.portable(settings, folder.path),
        warnings=warnings,
    )
    expected = about.subject(expected_isa(profile))
    for warning in warnings:
        progress.say(f"warning: {warning}")
    return about, expected


def on_target(
    about: About,
    expected: Subject,
    session: DeviceSession,
    *,
    notes: Notes,
    figures: Figures,
) -> Subject:
    """The network as the target takes it, which the target alone knows.

    Raises:
        UsageError: the run was begun on another device.
    """
    fp16 = _decided_fp16(notes, figures, expected)
    found = expected
    if session.isa != found.isa or fp16 != found.fp16:
        found = about.subject(session.isa, fp16)
    check_same_device(notes, session, about.folder)
    return found if notes.fp16() is not None else target_limits.held_on_target(found, session)


def _decided_fp16(notes: Notes, figures: Figures, found: Subject) -> Kept | None:
    """What stays FP32 in this run: once decided it holds, or stored figures would not compare."""
    known = notes.fp16()
    if found.fp16 is None or known is not None:
        return known
    if not figures.has_baseline():
        return found.fp16
    return Kept(operators=FALLBACKS[-1], reason="the run began when they were kept in any network")


def checked(
    settings: Settings, task: Task, module: nn.Module, profile: TargetProfile
) -> tuple[bytes, dict[str, Any], tuple[str, ...]]:
    """The dense network's graph, the run's inputs, and what is doubtful; nothing is written.

    Raises:
        UsageError: the task, the network, the goal or the table cannot be meant.
    """
    name, max_drop = settings.model or task.name, settings.goal.max_drop
    if settings.table is not None:
        check_can_be_store(Path(settings.table))
    validate_task(task, module)
    probed = sanity.probe(task, module)
    sanity.check_goal(task, module, max_drop=max_drop, probed=probed)
    graph = dense_graph(module, task.example(), name=name)
    check_exported(module, task.example(), graph, name=name)
    inputs = digests.inputs_of(task, module, graph, profile)
    warnings = sanity.doubts(task, module, max_drop=max_drop, probed=probed)
    return graph, inputs, (*warnings, *digests.doubts(inputs))


def expected_isa(profile: TargetProfile) -> str:
    """The target's instruction sets where they are known without asking it, or nothing."""
    local = profile.transport == "local" and profile.kind.on_cpu
    return state.isa() if local else ""


def check_store(notes: Notes, folder: RunFolder, inputs: dict[str, Any]) -> None:
    """The store is about the same inputs as well, also where ``config.json`` was lost.

    Raises:
        UsageError: it holds figures about others, or does not say about which.
    """
    known = notes.inputs()
    if known is None and notes.trials():
        known = {}
    if known is not None:
        config.check_inputs(folder, known, inputs)


def check_same_device(notes: Notes, session: DeviceSession, folder: RunFolder) -> None:
    """A run belongs to one device: its figures cannot be continued on another.

    Raises:
        UsageError: naming both devices.
    """
    before = notes.fingerprint()
    if before is None:
        notes.add_fingerprint(session.fingerprint)
    elif before != session.fingerprint:
        raise UsageError(
            f"{folder.path} was measured on {before}, this is {session.fingerprint}",
            "start a new run: --run NEW",
        )
