"""``config.json``: what a run was asked for and what it is about, and whether a command fits it."""

from __future__ import annotations

import os
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwloop.errors import UsageError
from hwloop.files import read_json
from hwloop.parsing import a_number, a_text, an_int, one_of, optional, read_record, to_json
from hwloop.records import Goal
from hwloop.run import identity
from hwloop.run.folder import RunFolder
from hwloop.run.settings import Settings
from hwloop.tasks.spec import relocated

RAISABLE = ("evaluations", "finalists", "final_steps", "time_limit_s", "finish_s")
"""A run may be given more of these later, and goes on from where it is."""

OBJECT = "(object) "
"""How a network or a task that was given in Python is named: it cannot be found again by name."""

LARGEST_SEED = 2**32 - 1

_A_PATH = a_text(16_384)  # as it was given, behind the way from the run folder
_A_LIMIT = optional(a_number(-1e12, 1e12))
_COUNT = an_int(0)
_SETTINGS = {
    "model": optional(_A_PATH),
    "task": _A_PATH,
    "data": optional(_A_PATH),
    "target": _A_PATH,
    "goal": lambda value: read_record(
        Goal, value, dict.fromkeys(("max_drop", "max_latency_ms", "min_speedup"), _A_LIMIT)
    ),
    "host": optional(a_text()),
    "simulate": lambda value: one_of("True", "False")(str(value)) == "True",
    "agent": a_text(),
    "reward": a_text(),
    "lam": a_number(0, 1e12),
    "evaluations": _COUNT,
    "time_limit_s": _A_LIMIT,
    "seed": an_int(0, LARGEST_SEED),
    "table": optional(_A_PATH),
    "loop_steps": optional(_COUNT),
    "finalists": _COUNT,
    "final_steps": _COUNT,
    "finish_s": _A_LIMIT,
}


def portable(settings: Settings, run: Path) -> Settings:
    """The settings with every path as seen from the run folder, so that both may move together."""

    def moved(path: str) -> str:
        there = Path(os.path.abspath(os.path.expanduser(path)))
        # The folders' own links are followed, so that it does not matter by which name the run
        # is reached; a link that was given stays, because it may be led elsewhere on purpose.
        real = os.path.join(os.path.realpath(there.parent), there.name)
        return os.path.relpath(real, os.path.realpath(run))

    return _with_paths(settings, moved)


def located(settings: Settings, run: Path) -> Settings:
    """Inverse of :func:`portable`: absolute paths, which hold wherever a command is typed."""
    return _with_paths(settings, lambda path: absolute(path, run))


def absolute(path: str, run: Path) -> str:
    """A portable path as an absolute one."""
    return os.path.normpath(os.path.join(os.path.realpath(run), path))


def read_settings(folder: RunFolder) -> tuple[Settings, dict[str, Any]]:
    """The stored settings, with portable paths, and the inputs that belong to them.

    Raises:
        UsageError: there is no run, or its configuration is damaged.
    """
    hint = "restore it from a copy, or start anew: --run NEW"
    value = read_json(folder.config_path, what="a run's config.json", hint=hint)
    inputs = value.pop("inputs", None) if isinstance(value, dict) else None
    if isinstance(value, dict):
        value.pop("versions", None)
        value.pop("loop_allowance", None)  # of runs that began with an earlier search
    try:
        settings = read_record(Settings, value, _SETTINGS)
        if not isinstance(inputs, dict):
            raise ValueError("it does not say which weights and data the run is about")
    except ValueError as error:
        raise UsageError(f"{folder.config_path} is damaged: {error}", hint) from error
    return settings, inputs


def write(folder: RunFolder, settings: Settings, inputs: dict[str, Any]) -> None:
    """Store what a run is asked for and about."""
    value = to_json(settings)
    versions = identity.versions()
    folder.write_json("config.json", {**value, "inputs": inputs, "versions": versions})


def settle(folder: RunFolder, settings: Settings, inputs: dict[str, Any]) -> bool:
    """Compare a command with the run that is in its folder; nothing is written.

    Args:
        settings: with portable paths.

    Returns:
        Whether the folder holds this run already.

    Raises:
        UsageError: it holds a run with other settings, or about other weights, data or code.
    """
    if not os.path.lexists(folder.config_path):
        return False
    before, known = read_settings(folder)
    check_inputs(folder, known, inputs)
    different = [
        f"{field.name}: {getattr(before, field.name)!r} there, "
        f"{getattr(settings, field.name)!r} now{_advice(field.name)}"
        for field in fields(Settings)
        if getattr(before, field.name) != getattr(settings, field.name)
        and not _is_raised(field.name, before, settings)
    ]
    if different:
        raise UsageError(
            f"{folder.path} holds a run with other settings:\n  " + "\n  ".join(different),
            "repeat the first command, or choose another folder: --run NEW",
        )
    return True


def check_inputs(folder: RunFolder, known: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Refuse a run whose inputs changed.

    Raises:
        UsageError: naming what changed, and the two ways on.
    """
    changed = identity.differences(known, inputs)
    if changed:
        raise UsageError(
            f"{folder.path} holds figures about other inputs; changed since then: "
            + ", ".join(changed),
            "put it back and repeat the command, or start a new run: --run NEW",
        )


def command(settings: Settings, run: Path) -> str:
    """The command line of a run, with what differs from the defaults; it holds in any folder.

    Args:
        settings: with portable paths.
    """
    here = located(settings, run)
    if here.task.startswith(OBJECT) or (here.model or "").startswith(OBJECT):
        return f"hwloop.optimize(...) as before, with run={str(run.absolute())!r}"
    parts = ["hwloop", "optimize", *([here.model] if here.model else [])]
    if here.task != "demo" or here.model:
        parts += ["--task", here.task]
    if here.goal.max_drop is None:
        parts += ["--max-drop", "none"]
    goal = {**vars(here.goal)}
    # The target has no default here: HWLOOP_TARGET may be another one where this is typed.
    defaults = {**{f.name: f.default for f in fields(Settings)}, "target": "", "max_drop": 0.01}
    named = {**vars(here), **goal}
    for name in (*goal, "data", "target", "host", "agent", "reward", "lam", "evaluations"):
        parts += _option(name, named[name], defaults.get(name))
    for name in ("seed", "table", "loop_steps", "finalists", "final_steps"):
        parts += _option(name, named[name], defaults.get(name))
    for name, seconds in (("--time-limit", here.time_limit_s), ("--finish", here.finish_s)):
        if seconds is not None:
            parts += [name, f"{np.format_float_positional(seconds, trim='-')}s"]
    if here.simulate:
        parts.append("--simulate")
    return shlex.join([*parts, "--run", str(run.absolute())])


def _option(name: str, value: Any, default: Any) -> list[str]:
    if value is None or value == default:
        return []
    return [f"--{name.replace('_', '-')}", str(value)]


def _with_paths(settings: Settings, moved: Any) -> Settings:
    def spec(text: str | None) -> str | None:
        return text if text is None or text.startswith(OBJECT) else relocated(text, moved)

    def path(text: str | None) -> str | None:
        return None if text is None else moved(text)

    target = settings.target
    return replace(
        settings,
        model=spec(settings.model),
        task=spec(settings.task) or settings.task,
        data=path(settings.data),
        table=path(settings.table),
        target=moved(target) if target.endswith(".toml") else target,
    )


def _is_raised(name: str, before: Settings, now: Settings) -> bool:
    old, new = getattr(before, name), getattr(now, name)
    if name not in RAISABLE:
        return False
    if old is None or new is None:  # no time for the finals is the least, no other limit the most
        return new is not None if name == "finish_s" else new is None
    return bool(new > old)


def _advice(name: str) -> str:
    return " (it may be raised, not lowered)" if name in RAISABLE else ""
