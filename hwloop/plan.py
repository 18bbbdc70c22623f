"""``--dry-run``: check what can be checked without measuring, and say what a run would do."""

from __future__ import annotations

import math
from pathlib import Path

from hwloop import space
from hwloop.evaluate import subject
from hwloop.profile import resolve
from hwloop.runs import USUAL_RECIPES, Settings
from hwloop.targets import DeviceSession
from hwloop.task import load_model, validate_task
from hwloop.tasks import load_task


def describe(settings: Settings, *, run: Path) -> dict[str, str]:
    """The plan as (what, value). Raises what the run itself would raise so far."""
    profile = resolve(settings.target, host=settings.host, simulate=settings.simulate)
    task = load_task(settings.task, data=Path(settings.data) if settings.data else None)
    module = load_model(task, settings.model)
    validate_task(task, module)
    with DeviceSession(profile) as session:
        name = settings.model or task.name
        found = subject(task, module, profile, session, name=name)
        device = session.fingerprint
    masks = space.masks(found.network, found.rules)
    rows = space.reachable_configs(found.network, found.rules)
    asked = {limit: value for limit, value in vars(settings.goal).items() if value is not None}
    return {
        "target": f"{profile.name}: {device.device}, {device.runtime} {device.runtime_version}",
        "network": f"{name}, {len(found.network.layers)} layers, {len(masks)} groups, "
        f"{sum(map(sum, masks))} legal actions",
        "candidates": f"{float(math.prod(map(sum, masks))):.2e}",
        "latency table": f"{len(rows)} rows",
        "evaluations": f"{settings.evaluations} and {len(USUAL_RECIPES)} usual recipes",
        "goal": ", ".join(f"{limit} {value}" for limit, value in asked.items()),
        "run folder": f"{run} ({'resumes' if (run / 'config.json').exists() else 'new'})",
    }
