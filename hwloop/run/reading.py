"""What a run folder tells: its report when the run is finished, or else how far it is.

Nothing is written, so that a run on a read-only disk, or one that is going on, can be looked at.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hwloop.errors import UsageError
from hwloop.files import read_json
from hwloop.measure.store import Store
from hwloop.parsing import (
    A_COUNT,
    ANY_NUMBER,
    ANY_TEXT,
    Check,
    a_flag,
    a_list,
    a_mapping,
    a_text,
    as_it_is,
    at_least,
    optional,
)
from hwloop.run import config, identity
from hwloop.run.beside import DISTURBANCE
from hwloop.run.folder import RunFolder
from hwloop.run.front import described
from hwloop.run.memory import Figures, Notes
from hwloop.run.result import BY_HAND, USUAL
from hwloop.run.settings import Settings

_TEXT = a_text(100_000, ANY_TEXT)
_LINES = a_list(_TEXT, 0, 100_000)
_INTERVAL = a_list(ANY_NUMBER, 2, 2)
_FIGURES = {
    "latency_ms": ANY_NUMBER,
    "latency_ms_ci95": _INTERVAL,
    "metric": ANY_NUMBER,
    "size_bytes": A_COUNT,
    "macs": A_COUNT,
}
_SPEEDUP = {"speedup": ANY_NUMBER, "speedup_ci95": _INTERVAL, "metric_drop": ANY_NUMBER}
_ENERGY = {"energy_mj": ANY_NUMBER, "source": _TEXT}
_LATER_ENERGY = {
    "mean_mw": optional(ANY_NUMBER),
    "idle_mw": optional(ANY_NUMBER),
    "rails": optional(a_list(_TEXT, 0, 100)),
}
_COPIES = at_least(
    {"with_copies_ms": ANY_NUMBER, "without_copies_ms": ANY_NUMBER, "copied_bytes": A_COUNT}
)
_LATER = {
    "precisions": at_least(
        {
            "base": _TEXT,
            "kept_float": _LINES,
            "kept_float_why": _TEXT,
            "int8_refused": a_mapping(_TEXT),
            "int8_masked_groups": _LINES,
        }
    ),
    "disturbance": DISTURBANCE,
    "not_measured": a_list(at_least({"what": _TEXT, "why": _TEXT}), 0, 100),
}


def _error(value: Any) -> Any:
    """How well rows predicted; figures where there were networks to tell it."""
    known = isinstance(value, dict) and value.get("n") != 0
    figures = {"median_abs_pct": ANY_NUMBER, "within_10pct": ANY_NUMBER}
    return at_least({"n": A_COUNT, **(figures if known else {})})(value)


def _comparison(value: Any) -> Any:
    failed = isinstance(value, dict) and "failed" in value
    found = at_least({"failed": optional(_TEXT)} if failed else {**_FIGURES, **_SPEEDUP})(value)
    return _where_present(found, {"recovery_steps": A_COUNT, "search_drop": ANY_NUMBER})


def _where_present(value: Any, checks: Mapping[str, Check]) -> Any:
    """Fields that not every target or not every version has: right where they are there."""
    return at_least({name: check for name, check in checks.items() if name in value})(value)


def _energy(value: Any) -> Any:
    return _where_present(at_least(_ENERGY)(value), _LATER_ENERGY)


def _extras(value: Any) -> Any:
    checks = {"launch_overhead_ms": ANY_NUMBER, "energy_mj": _energy, "copies": _COPIES}
    checks |= {"recovery_steps": optional(A_COUNT), "search_drop": optional(ANY_NUMBER)}
    checks |= {"usual_setting": optional(_TEXT)}
    return _where_present(value, checks)


_REPORT = at_least(
    {
        "target": at_least({"name": _TEXT, "simulated": a_flag}),
        "goal": at_least({"value": a_mapping(ANY_NUMBER), "met": a_flag, "why_not": _LINES}),
        "metric_name": _TEXT,
        "baseline": lambda value: _extras(at_least(_FIGURES)(value)),
        "best": lambda value: _extras(
            at_least(
                {
                    **_FIGURES,
                    **_SPEEDUP,
                    "metric_runtime": _TEXT,
                    "significant": a_flag,
                    "actions": a_list(at_least({"group": _TEXT, "action": _TEXT}), 0, 100_000),
                }
            )(value)
        ),
        "comparisons": a_mapping(_comparison),
        "table": lambda value: _where_present(
            at_least({"rows": A_COUNT, "error": _error})(value),
            {"row_doubts": _LINES, "unpaid": a_mapping(A_COUNT)},
        ),
        "search": at_least(
            {
                "agent": _TEXT,
                "evaluations": A_COUNT,
                "failed": A_COUNT,
                "failures": _LINES,
                "wall_s": ANY_NUMBER,
                "seed": A_COUNT,
                "asked": a_mapping(as_it_is),
            }
        ),
        "unstable": _LINES,
        "warnings": _LINES,
        "samples": A_COUNT,
    }
)


LATER = {"finish_s": None}
"""What an earlier hwloop's report does not say was asked, because it could not be."""


def read(folder: RunFolder) -> dict[str, Any]:
    """The value of ``report.json``, or of :func:`unfinished` for a run that has none yet.

    Raises:
        UsageError: there is no run, or its files are damaged.
    """
    folder.check_readable()
    has_report = os.path.lexists(folder.report_path)
    if not os.path.lexists(folder.config_path):
        if has_report:  # a report that was sent around by itself
            return _report(folder, "ask for another copy of it")
        raise UsageError(
            f"there is no run in {folder.path}", "name the folder that --run named, e.g. hwloop-run"
        )
    settings, inputs = config.read_settings(folder)
    again = config.command(settings, folder.path)
    if has_report:
        report = _report(folder, f"{again}   writes it anew")
        if {**LATER, **report["search"]["asked"]} == asked(settings):
            return report
    return unfinished(folder, settings, inputs, again)


def asked(settings: Settings) -> dict[str, Any]:
    """What a run may be given more of: by this a report is known to be the last one."""
    return {name: getattr(settings, name) for name in config.RAISABLE}


def unfinished(
    folder: RunFolder, settings: Settings, inputs: dict[str, Any], command: str
) -> dict[str, Any]:
    """How far a run is: ``finished`` (false), stage, evaluations, of, failed, best, command."""
    found: dict[str, Any] = {"finished": False, "stage": "start", "evaluations": 0, "failed": 0}
    found.update({"of": settings.evaluations + len(BY_HAND), "best": "", "command": command})
    if not folder.store_path.is_file():
        return found
    with Store(folder.store_path, read_only=True) as store:
        notes, figures = Notes(store), Figures(store, identity.key_of(inputs))
        found["stage"] = notes.stage() or "start"
        trials = notes.trials()
        baseline, best = figures.baseline_latency(), notes.best_so_far()
    found.update(evaluations=len(trials), failed=sum(trial.outcome is None for trial in trials))
    usual = sum(trial.source == USUAL for trial in trials)
    if usual < len(trials):  # all of them come first: how many a target has is known by now
        found["of"] = settings.evaluations + usual
    if baseline is not None:
        simulated = any(t.outcome and t.outcome.latency_source.mark for t in trials)
        mark = " (simulated)" if simulated else ""
        goal, baseline_ms = settings.goal, baseline.latency_ms
        found["best"] = described(best, goal, baseline_ms=baseline_ms, mark=mark)
    return found


def unfinished_text(found: dict[str, Any]) -> str:
    """The same in sentences."""
    lines = [
        f"not finished: {found['stage']}, {found['evaluations']} of {found['of']} candidates "
        f"evaluated ({found['failed']} failed)",
        found["best"] or "no network is faster yet",
        f"go on: {found['command']}",
    ]
    return "\n".join(lines)


def _report(folder: RunFolder, hint: str) -> dict[str, Any]:
    value = read_json(folder.report_path, what="report", hint=hint)
    try:
        found: dict[str, Any] = _where_present(_REPORT(value), _LATER)
    except ValueError as error:
        raise UsageError(f"{folder.report_path} is no report: {error}", hint) from error
    return found
