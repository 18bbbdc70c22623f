"""May this run begin, or go on? Everything that is asked before a target is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from hwloop.compress.export import check_exported
from hwloop.compress.subject import dense_graph
from hwloop.device import state
from hwloop.errors import UsageError
from hwloop.findings import Fingerprint
from hwloop.measure.profile import TargetProfile
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store, check_can_be_store
from hwloop.parsing import a_mapping, as_it_is
from hwloop.run import config, identity
from hwloop.run.folder import RunFolder
from hwloop.run.result import Settings
from hwloop.task import Task, validate_task
from hwloop.tasks import sanity


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
    inputs = identity.inputs_of(task, module, graph, profile)
    warnings = sanity.doubts(task, module, max_drop=max_drop, probed=probed)
    return graph, inputs, (*warnings, *identity.doubts(inputs))


def expected_isa(profile: TargetProfile) -> str:
    """The target's instruction sets where they are known without asking it, or nothing."""
    local = profile.transport == "local" and profile.runtime == "onnxruntime"
    return state.isa() if local else ""


def check_store(store: Store, folder: RunFolder, inputs: dict[str, Any]) -> None:
    """The store is about the same inputs as well, also where ``config.json`` was lost.

    Raises:
        UsageError: it holds figures about others, or does not say about which.
    """
    known = store.get("run", "inputs", a_mapping(as_it_is))
    if known is None and store.trials():
        known = {}
    if known is not None:
        config.check_inputs(folder, known, inputs)


def check_same_device(store: Store, session: DeviceSession, folder: RunFolder) -> None:
    """A run belongs to one device: its figures cannot be continued on another.

    Raises:
        UsageError: naming both devices.
    """
    before = store.get("run", "fingerprint", Fingerprint.from_json)
    if before is None:
        store.add("run", "fingerprint", session.fingerprint)
    elif before != session.fingerprint:
        raise UsageError(
            f"{folder.path} was measured on {before}, this is {session.fingerprint}",
            "start a new run: --run NEW",
        )
