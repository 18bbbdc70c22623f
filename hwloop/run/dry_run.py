"""``--dry-run``: check what can be checked here, and say what a run would do, need and take.

Nothing is written or downloaded and no target is asked. What a target would say about itself is
taken from the run or the table where they know it, and from this machine where it is the target.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hwloop.compress.subject import Subject, check_has_choices, subject
from hwloop.errors import UsageError
from hwloop.findings import Fingerprint
from hwloop.measure.profile import TargetProfile, rules_for
from hwloop.measure.profile_file import resolve
from hwloop.measure.store import Store
from hwloop.measure.table import (
    EMPTY,
    REFERENCE,
    population,
    stored_populations,
    stored_refused_kinds,
)
from hwloop.records import Network
from hwloop.run import config, identity, reading
from hwloop.run.admission import check_store, checked, expected_isa
from hwloop.run.estimate import WORKER_S, Times, seconds_left, times_of
from hwloop.run.folder import RunFolder
from hwloop.run.memory import Figures, Notes
from hwloop.run.options import run_folder, settings_of
from hwloop.run.rounds import lessons_in
from hwloop.run.settings import Settings
from hwloop.run.trials import usual_count
from hwloop.task import load_model
from hwloop.tasks.download import no_downloads
from hwloop.tasks.load import as_task, load_task

ROW_BYTES = 4_000


def describe(model: Any, *, run: Any, task: Any = None, **options: Any) -> dict[str, str]:
    """The plan as (what, value). Raises what the run itself would raise before it measures."""
    settings = settings_of(model, task=task, **options)
    folder = RunFolder(run_folder(run))
    folder.check()
    profile = resolve(settings.target, host=settings.host, simulate=settings.simulate)
    with no_downloads(), _no_bytecode():
        data = None if settings.data is None else Path(settings.data)
        named = settings.task if task is None else task
        plugin = load_task(named, data=data) if isinstance(named, str) else as_task(named)
        module = load_model(plugin, model)
        started = time.monotonic()
        graph, inputs, warnings = checked(settings, plugin, module, profile)
        checks_s = time.monotonic() - started
        resumes = config.settle(folder, config.portable(settings, folder.path), inputs)
        folder.check_free()
        known = _known(folder, settings, profile, inputs)
        name = settings.model or plugin.name
        found = subject(
            plugin, module, rules_for(profile, known.isa), isa=known.isa, name=name, graph=graph
        )
        rules = replace(found.rules, refused_kinds=known.refused_kinds)
        found = replace(found, rules=rules)
        check_has_choices(found)
        times = times_of(plugin, found, checks_s=checks_s)
    done = "new" if not resumes else "finished" if known.finished else "resumes"
    where = f"{folder.path} ({done})"
    return _as_text(settings, profile, found, known, times, where, warnings)


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """Python keeps what it compiles beside the user's files, but not now."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of the target without asking it.

    Attributes:
        isa: its instruction sets, empty where nothing tells them.
        says: where that is from.
        rows: keys of the rows that a table has for it.
        refused_kinds: kinds of int8 rows that it is known not to build.
        done: how many of each stage's results are stored already.
        finished: nothing is left of what was asked for.
    """

    isa: str
    says: str
    rows: frozenset[str]
    refused_kinds: tuple[str, ...] = ()
    done: dict[str, int] = field(default_factory=dict)
    finished: bool = False


def _known(
    folder: RunFolder, settings: Settings, profile: TargetProfile, inputs: dict[str, Any]
) -> _Known:
    local = profile.transport == "local" and not profile.kind.is_simulated
    isa = expected_isa(profile)
    says = "this machine" if local else f"{profile.name}, not asked"
    fingerprint, done = None, {}
    with _opened(folder.store_path) as store:
        if store is not None:
            notes = Notes(store)
            check_store(notes, folder, inputs)
            fingerprint = notes.fingerprint()
            done = _done(store, inputs)
    if fingerprint is not None:
        isa, says = dict(fingerprint.settings).get("isa", ""), f"{fingerprint.device}, as it was"
    table = folder.store_path if settings.table is None else Path(settings.table)
    rows: frozenset[str] = frozenset()
    refused: tuple[str, ...] = ()
    with _opened(table) as store:
        if store is not None:
            rows = _rows(store, profile, fingerprint)
            if fingerprint is not None:
                name = population(fingerprint, profile.protocols.row)
                refused = tuple(stored_refused_kinds(store, name))
    return _Known(
        isa=isa,
        says=says,
        rows=rows,
        refused_kinds=refused,
        done=done,
        finished=_finished(folder, settings),
    )


def _done(store: Store, inputs: dict[str, Any]) -> dict[str, int]:
    """How many results of each stage are stored."""
    figures = Figures(store, identity.key_of(inputs))
    return {"trials": len(store.trials()), **figures.done()}


def _finished(folder: RunFolder, settings: Settings) -> bool:
    """Whether the folder's report answers this command."""
    try:
        report = reading.read(folder)
    except UsageError:  # there is none, or it is damaged: a run writes it anew
        return False
    asked = report.get("search", {}).get("asked")
    return bool(asked == reading.asked(settings))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Store | None]:
    if not path.is_file():
        yield None
        return
    with Store(path, read_only=True) as store:
        yield store


def _rows(store: Store, profile: TargetProfile, known: Fingerprint | None) -> frozenset[str]:
    """The rows that are of this target for sure, or else the largest set that may be."""
    wanted = None if known is None else population(known, profile.protocols.row)
    found = []
    for name, fingerprint in stored_populations(store).items():
        if name == wanted or (wanted is None and fingerprint.runtime == profile.runtime):
            found.append(frozenset([*store.all(f"row/{name}"), *store.all(f"refused/{name}")]))
    return max(found, key=len, default=frozenset())


def _fixed(network: Network) -> str:
    """Groups whose width cannot change, by reason."""
    names: dict[str, list[str]] = {}
    for group in network.groups:
        if group.fixed_by:
            names.setdefault(group.fixed_by, []).append(group.name)
    found = [f"{len(those)}, as {those[0]}: {why}" for why, those in names.items()]
    return "; ".join(found) or "none"


def _between(found: Subject) -> str:
    more = found.plan.interpolated
    return f"; {more} more lie between them and are interpolated" if more else ""


def _as_text(
    settings: Settings,
    profile: TargetProfile,
    found: Subject,
    known: _Known,
    times: Times,
    run: str,
    warnings: tuple[str, ...],
) -> dict[str, str]:
    masks = found.masks
    configs = [REFERENCE, EMPTY, *found.reachable()]
    needed = {config.key() for config in configs}
    missing = len(needed - known.rows)
    by_hand = usual_count(found)
    total = settings.evaluations + by_hand
    seconds = times.checks_s + WORKER_S
    if not known.finished:
        seconds += seconds_left(settings, profile, found, times, done=known.done, missing=missing)
    minutes = seconds / 60
    finals = by_hand + lessons_in(settings.evaluations) + settings.finalists + 2
    disk = times.weights_bytes * 2 * finals + len(needed) * ROW_BYTES + len(found.graph)
    disk += total * ROW_BYTES
    limits = {limit: value for limit, value in vars(settings.goal).items() if value is not None}
    unknown = not known.isa and profile.kind.on_cpu
    assumed = ", its instruction sets unknown" if unknown else ""
    lines = {
        "target": f"{profile.name} ({profile.runtime}): {known.says}{assumed}",
        "network": f"{found.network.name}, {len(found.network.layers)} layers, {len(masks)} "
        f"groups, {sum(map(sum, masks))} legal actions",
        "widths that stay": _fixed(found.network),
        "candidates": f"{float(math.prod(map(sum, masks))):.2e}",
        "latency table": f"{len(needed)} rows, {missing} of them missing{_between(found)}",
        "evaluations": f"{settings.evaluations} and {by_hand} usual settings, "
        f"{known.done.get('trials', 0)} done",
        "goal": ", ".join(f"{limit} {value}" for limit, value in limits.items()),
        "time": f"about {minutes:.0f} minutes" if minutes >= 2 else f"about {seconds:.0f} s",
        "disk": f"about {disk / 1e6:.0f} MB",
        "run folder": run,
    }
    if warnings:
        lines["warnings"] = "; ".join(warnings)
    return lines
