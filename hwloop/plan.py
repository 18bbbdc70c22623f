"""``--dry-run``: check what can be checked without measuring, and say what a run would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwloop import space
from hwloop.evaluate import subject
from hwloop.profile import load_profile
from hwloop.runs import USUAL_RECIPES
from hwloop.targets import DeviceSession
from hwloop.task import load_model, validate_task
from hwloop.tasks import load_task


def describe(
    model: str | None, *, task: str, target: str, run: str, evaluations: int, **options: Any
) -> dict[str, str]:
    """The plan as (what, value). Raises what the run itself would raise so far."""
    profile = load_profile(target)
    data = options.get("data")
    plugin = load_task(task, data=Path(data) if data else None)
    module = load_model(plugin, model)
    validate_task(plugin, module)
    with DeviceSession(profile) as session:
        found = subject(plugin, module, profile, session, name=model or plugin.name)
        device = session.fingerprint
    masks = space.masks(found.network, found.rules)
    choices = 1
    for mask in masks:
        choices *= sum(mask)
    rows = space.reachable_configs(found.network, found.rules)
    limits = {name: options.get(name) for name in ("max_drop", "max_latency_ms", "min_speedup")}
    asked = {name: value for name, value in limits.items() if value is not None}
    return {
        "target": f"{profile.name}: {device.device}, {device.runtime} {device.runtime_version}",
        "network": f"{found.network.name}, {len(found.network.layers)} layers, "
        f"{len(found.network.groups)} groups, {sum(map(sum, masks))} legal actions",
        "candidates": f"{choices:.2e}",
        "latency table": f"{len(rows)} rows",
        "evaluations": f"{evaluations} and {len(USUAL_RECIPES)} usual recipes",
        "goal": ", ".join(f"{name} {value}" for name, value in asked.items()) or "max_drop 0.01",
        "run folder": f"{run} ({'resumes' if Path(run, 'config.json').exists() else 'new'})",
    }
