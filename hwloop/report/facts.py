"""What a run found, as JSON: reads the record, computes nothing new."""

from __future__ import annotations

import platform
import shlex
from typing import Any

from hwloop.files import write_atomically
from hwloop.findings import Measurement
from hwloop.measure.trial import Trial
from hwloop.parsing import to_json
from hwloop.report.markdown import markdown
from hwloop.run import config, identity
from hwloop.run.folder import RunFolder
from hwloop.run.reading import asked
from hwloop.run.result import ByHand, NetworkFigures, Result


def write_report(folder: RunFolder, result: Result) -> dict[str, Any]:
    """Write ``report.json`` and ``report.md``; return the former's value."""
    report = as_json(folder, result)
    folder.write_json("report.json", report)
    write_atomically(folder.path / "report.md", markdown(report).encode())
    return report


def as_json(folder: RunFolder, result: Result) -> dict[str, Any]:
    """The report; its fields are documented in docs/measuring.md."""
    baseline, best = _baseline(result), _best(result)
    not_measured = _beside(result, baseline, best)
    return {
        "target": {
            "name": result.target.name,
            "fingerprint": to_json(result.fingerprint),
            "verified": result.target.verified,
            "simulated": result.target.simulated,
        },
        "goal": _goal(result),
        "metric_name": result.metric_name,
        "baseline": baseline,
        "best": best,
        "comparisons": {name: _by_hand(result, found) for name, found in result.by_hand.items()},
        "pareto": [_trial(result, trial) for trial in result.front],
        "table": to_json(result.table),
        "precisions": to_json(result.precisions),
        "not_measured": not_measured,
        "search": _search(result),
        "unstable": list(result.measurement.unstable),
        "clock": result.measurement.clock,
        "disturbance": result.measurement.disturbance,
        "warnings": list(result.warnings),
        "samples": len(result.measurement.samples_ms),
        "command": _command(folder, result),
        "versions": {**identity.versions(), "python": platform.python_version()},
    }


def _goal(result: Result) -> dict[str, Any]:
    verdict = result.verdict
    return {
        "kind": "+".join(verdict.limits),
        "value": verdict.limits,
        "met": verdict.met,
        "why_not": list(verdict.why_not),
    }


def _search(result: Result) -> dict[str, Any]:
    return {
        "agent": result.settings.agent,
        "evaluations": len(result.trials),
        "failed": sum(trial.outcome is None for trial in result.trials),
        "failures": [trial.reason for trial in result.trials if trial.reason],
        "wall_s": round(result.wall_s, 1),
        "seconds_by_stage": _seconds(result),
        "seed": result.settings.seed,
        "asked": asked(result.settings),
    }


def _beside(result: Result, baseline: dict[str, Any], best: dict[str, Any]) -> list[dict[str, str]]:
    """Put energy and copies with their networks; what failed, and why."""
    failed = []
    for name, found in (("energy_mj", result.energy_mj), ("copies", result.copies)):
        if found is None:
            continue
        if "failed" in found:
            failed.append({"what": name, "why": found["failed"]})
        else:
            baseline[name], best[name] = found["baseline"], found["best"]
    return failed


def _baseline(result: Result) -> dict[str, Any]:
    return {
        "latency_ms": result.measurement.reference_latency_ms,
        "latency_ms_ci95": list(result.measurement.reference_ms_ci95),
        **_network(result, result.baseline),
    }


def _best(result: Result) -> dict[str, Any]:
    measurement = result.measurement
    best = {
        **_compared(result, result.best, measurement),
        "metric_drop": result.drop,
        "search_drop": result.recovery.search_drop,
        "recovery_steps": result.recovery.steps,
        "usual_setting": result.recovery.usual_setting,
        "actions": [to_json(done) for done in result.done],
    }
    if result.engine is not None:
        best["engine"] = {"file": "best/model.engine", **result.engine}
    if measurement.launch_overhead_ms is not None:
        best["launch_overhead_ms"] = measurement.launch_overhead_ms
    return best


def _by_hand(result: Result, found: ByHand) -> dict[str, Any]:
    """One of the usual settings, after the same recovery and by the same measurement."""
    if found.measurement is None or found.network is None:
        return {"failed": found.failed}
    return {
        **_compared(result, found.network, found.measurement),
        "metric_drop": found.drop,
        "search_drop": found.search_drop,
        "recovery_steps": found.steps,
        "recovery": f"{found.steps} distillation steps",
        "actions": [result.menu.index(action) for action in found.candidate.actions],
    }


def _compared(result: Result, network: NetworkFigures, measured: Measurement) -> dict[str, Any]:
    return {
        "latency_ms": measured.latency_ms,
        "latency_ms_ci95": list(measured.latency_ms_ci95),
        **_network(result, network),
        "speedup": measured.speedup,
        "speedup_ci95": list(measured.speedup_ci95),
        "significant": measured.significant,
    }


def _network(result: Result, found: NetworkFigures) -> dict[str, Any]:
    return {
        "latency_source": "simulated" if result.target.simulated else "device",
        **_meaning(result),
        "metric": found.metric,
        "metric_split": "test",
        "metric_runtime": result.metric_runtime,
        "size_bytes": found.size_bytes,
        "macs": found.macs,
    }


def _meaning(result: Result) -> dict[str, Any]:
    """On a GPU, inputs and outputs stay there while the clock runs."""
    return {"without_copies": True} if result.target.without_copies else {}


def _trial(result: Result, trial: Trial) -> dict[str, Any]:
    """A trial's figures: after the short recovery of the search, on the search split."""
    outcome = trial.outcome
    if outcome is None or outcome.measurement is None:
        return {"failed": trial.reason}
    return {
        "latency_ms": outcome.latency_ms,
        "latency_ms_ci95": list(outcome.measurement.latency_ms_ci95),
        "latency_source": outcome.latency_source.value,
        **_meaning(result),
        "metric": outcome.metric,
        "metric_split": "search",
        "metric_runtime": result.metric_runtime,
        "metric_drop": outcome.metric_drop,
        "size_bytes": outcome.size_bytes,
        "macs": outcome.macs,
        "speedup": outcome.measurement.speedup,
        "speedup_ci95": list(outcome.measurement.speedup_ci95),
        "recovery": f"{result.recovery.loop_steps} distillation steps",
        "source": trial.source,
        "actions": [result.menu.index(action) for action in trial.candidate.actions],
    }


def _seconds(result: Result) -> dict[str, float]:
    found = {name: round(value, 2) for name, value in sorted(result.seconds_by_stage.items())}
    found["other"] = round(max(result.wall_s - sum(result.seconds_by_stage.values()), 0.0), 2)
    return found


def _command(folder: RunFolder, result: Result) -> str:
    """What measures the figure again; where nothing is measured, what computes it again."""
    settings, run = result.settings, folder.path.resolve()
    if result.target.simulated:
        again = run.with_name(f"{run.name}-again")
        return config.command(config.portable(settings, again), again)
    target = config.located(config.portable(settings, run), run).target
    host = ["--host", settings.host] if settings.host else []
    return shlex.join(["hwloop", "bench", str(run), "--target", target, *host])
