"""What a run found, as JSON, Markdown and a console table. Reads records, computes nothing new."""

from __future__ import annotations

import platform
import shlex
from typing import Any

from hwloop.compress import space
from hwloop.files import write_atomically
from hwloop.parsing import printable, to_json
from hwloop.records import Trial
from hwloop.run import config, identity
from hwloop.run.beside import copies_lines, disturbance_lines, energy_line, precision_lines
from hwloop.run.finalists import pareto_front
from hwloop.run.folder import RunFolder
from hwloop.run.reading import asked
from hwloop.run.result import Result


def write_report(folder: RunFolder, result: Result) -> dict[str, Any]:
    """Write ``report.json`` and ``report.md``; return the former's value."""
    report = as_json(folder, result)
    folder.write_json("report.json", report)
    write_atomically(folder.path / "report.md", markdown(report).encode())
    return report


def as_json(folder: RunFolder, result: Result) -> dict[str, Any]:
    """The report; its fields are documented in docs/measuring.md."""
    low, high = result.measurement.ratio_ci95
    speedup = 1 / result.measurement.ratio
    drop = result.subject.task.drop(result.dense_metric, result.metric)
    baseline, best = _baseline(result), _best(result)
    best.update(
        speedup=speedup,
        speedup_ci95=[1 / high, 1 / low],
        significant=result.measurement.significant,
        metric_drop=drop,
        actions=[
            {"group": group.name, "layers": list(group.layers), "action": str(action)}
            for group, action in zip(
                result.subject.network.groups, result.candidate.actions, strict=True
            )
        ],
    )
    if result.engine is not None:
        best["engine"] = {"file": "best/model.engine", **result.engine}
    overhead_ms = result.measurement.launch_overhead_ms
    if overhead_ms is not None:
        best["launch_overhead_ms"] = overhead_ms
    not_measured = _beside(result, baseline, best)
    failed = sum(trial.outcome is None for trial in result.trials)
    return {
        "target": {
            "name": result.profile.name,
            "fingerprint": to_json(result.fingerprint),
            "verified": result.profile.verified,
            "simulated": result.profile.simulated,
        },
        "goal": _goal(result, drop=drop, latency_ms=best["latency_ms"], speedup=speedup),
        "metric_name": result.subject.task.metric_name,
        "baseline": baseline,
        "best": best,
        "comparisons": {name: _trial(result, trial) for name, trial in result.recipes.items()},
        "pareto": [_trial(result, trial) for trial in pareto_front(result.trials)],
        "table": result.table,
        "precisions": _precisions(result),
        "not_measured": not_measured,
        "search": {
            "agent": result.settings.agent,
            "evaluations": len(result.trials),
            "failed": failed,
            "failures": [trial.reason for trial in result.trials if trial.reason],
            "wall_s": round(result.wall_s, 1),
            "seconds_by_stage": _seconds(result),
            "seed": result.settings.seed,
            "asked": asked(result.settings),
        },
        "unstable": list(result.measurement.unstable),
        "clock": result.measurement.clock,
        "disturbance": result.measurement.disturbance,
        "warnings": list(result.warnings),
        "samples": len(result.measurement.samples_ms),
        "command": _command(folder, result),
        "versions": {**identity.versions(), "python": platform.python_version()},
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


def _precisions(result: Result) -> dict[str, Any]:
    """Which precisions the target could be given, and what was taken from them and why."""
    network, rules, fp16 = result.subject.network, result.subject.rules, result.subject.fp16
    return {
        "base": rules.base_precision,
        "kept_float": [] if fp16 is None else list(fp16.in_graph(result.subject.graph)),
        "kept_float_why": "" if fp16 is None else fp16.reason,
        "int8_refused": result.int8_refused,
        "int8_masked_groups": [
            network.groups[index].name for index in space.int8_masked(network, rules)
        ],
    }


def _baseline(result: Result) -> dict[str, Any]:
    reference = result.measurement.reference_latency_ms
    subject = result.subject
    return {
        "latency_ms": reference,
        "latency_ms_ci95": list(result.measurement.reference_ms_ci95),
        **_common(result, metric=result.dense_metric),
        "size_bytes": len(subject.graph),
        "macs": subject.macs(subject.dense_candidate),
    }


def _best(result: Result) -> dict[str, Any]:
    return {
        "latency_ms": result.measurement.latency_ms,
        "latency_ms_ci95": list(result.measurement.latency_ms_ci95),
        **_common(result, metric=result.metric),
        "size_bytes": result.size_bytes,
        "macs": result.subject.macs(result.candidate),
    }


def _common(result: Result, *, metric: float) -> dict[str, Any]:
    return {
        "latency_source": "simulated" if result.profile.simulated else "device",
        **_meaning(result),
        "metric": metric,
        "metric_split": "test",
        "metric_runtime": _metric_runtime(result),
    }


def _meaning(result: Result) -> dict[str, Any]:
    """On a GPU, inputs and outputs stay there while the clock runs."""
    return {"without_copies": True} if result.profile.runtime == "tensorrt" else {}


def _metric_runtime(result: Result) -> str:
    """What computed the outputs: simulated targets have ONNX Runtime do it."""
    return "onnxruntime" if result.profile.simulated else result.fingerprint.runtime


def _goal(result: Result, *, drop: float, latency_ms: float, speedup: float) -> dict[str, Any]:
    goal = result.settings.goal
    limits = {
        "max_drop": (goal.max_drop, drop, goal.max_drop is None or drop <= goal.max_drop),
        "max_latency_ms": (
            goal.max_latency_ms,
            latency_ms,
            goal.max_latency_ms is None or latency_ms <= goal.max_latency_ms,
        ),
        "min_speedup": (
            goal.min_speedup,
            speedup,
            goal.min_speedup is None or speedup >= goal.min_speedup,
        ),
    }
    asked = {name: value for name, value in limits.items() if value[0] is not None}
    faster = result.measurement.significant and result.measurement.ratio < 1
    reasons = [
        f"{name} is {found:.4g}, asked for {limit}"
        for name, (limit, found, ok) in asked.items()
        if not ok
    ]
    if result.candidate == result.subject.dense_candidate:
        reasons.append(result.summary)
    elif not faster:
        reasons.append("the final measurement finds no difference in latency")
    return {
        "kind": "+".join(asked),
        "value": {name: limit for name, (limit, _, _) in asked.items()},
        "met": not reasons,
        "why_not": reasons,
    }


def _trial(result: Result, trial: Trial) -> dict[str, Any]:
    """A trial's figures: after the short recovery of the search, on the search split."""
    outcome = trial.outcome
    if outcome is None or outcome.measurement is None:
        return {"failed": trial.reason}
    low, high = outcome.measurement.ratio_ci95
    return {
        "latency_ms": outcome.latency_ms,
        "latency_ms_ci95": list(outcome.measurement.latency_ms_ci95),
        "latency_source": outcome.latency_source.value,
        **_meaning(result),
        "metric": outcome.metric,
        "metric_split": "search",
        "metric_runtime": _metric_runtime(result),
        "metric_drop": outcome.metric_drop,
        "size_bytes": outcome.size_bytes,
        "macs": outcome.macs,
        "speedup": 1 / outcome.measurement.ratio,
        "speedup_ci95": [1 / high, 1 / low],
        "recovery": f"{result.settings.loop_steps} distillation steps",
        "source": trial.source,
        "actions": [space.ACTIONS.index(action) for action in trial.candidate.actions],
    }


def _seconds(result: Result) -> dict[str, float]:
    found = {name: round(value, 2) for name, value in sorted(result.seconds_by_stage.items())}
    found["other"] = round(max(result.wall_s - sum(result.seconds_by_stage.values()), 0.0), 2)
    return found


def _command(folder: RunFolder, result: Result) -> str:
    """What measures the figure again; where nothing is measured, what computes it again."""
    settings, run = result.settings, folder.path.resolve()
    if result.profile.simulated:
        again = run.with_name(f"{run.name}-again")
        return config.command(config.portable(settings, again), again)
    target = config.located(config.portable(settings, run), run).target
    host = ["--host", settings.host] if settings.host else []
    return shlex.join(["hwloop", "bench", str(run), "--target", target, *host])


# --------------------------------------------------------------------------------- for people


def summary_rows(report: dict[str, Any]) -> list[list[str]]:
    """Header and rows of the result table: dense, best, then the usual recipes."""
    metric = report["metric_name"]
    rows = [["network", "latency (95 %)", "speedup (95 %)", metric, "drop", "file", "MACs"]]
    rows.append(_row("dense", report["baseline"], simulated=report["target"]["simulated"]))
    rows.append(_row("hwloop", report["best"], simulated=report["target"]["simulated"]))
    for name, values in report["comparisons"].items():
        if "failed" not in values:
            rows.append(_row(f"{name} *", values, simulated=report["target"]["simulated"]))
    return rows


def _row(name: str, values: dict[str, Any], *, simulated: bool) -> list[str]:
    low, high = values["latency_ms_ci95"]
    mark = " simulated" if simulated else ""
    meaning = " without copies" if values.get("without_copies") is True else ""
    speed = "1.00x"
    if "speedup" in values:
        least, most = values["speedup_ci95"]
        speed = f"{values['speedup']:.2f}x ({least:.2f}-{most:.2f}){mark}"
    return [
        name,
        f"{values['latency_ms']:.3f} ms ({low:.3f}-{high:.3f}){mark}{meaning}",
        speed,
        f"{values['metric']:.4f}",
        f"{values['metric_drop']:+.4f}" if "metric_drop" in values else "",
        f"{values['size_bytes'] / 1e6:.2f} MB",
        f"{values['macs'] / 1e6:.1f} M",
    ]


def notes(report: dict[str, Any]) -> list[str]:
    """The sentences under the table."""
    goal, error, search = report["goal"], report["table"]["error"], report["search"]
    asked = ", ".join(f"{name} {value}" for name, value in goal["value"].items())
    lines = [f"goal ({asked}): " + ("met" if goal["met"] else "; ".join(goal["why_not"]))]
    if report["target"]["simulated"]:
        lines.append("simulated: every latency and speedup is computed, none was measured")
    runtime = report["best"]["metric_runtime"]
    lines.append(
        f"dense and hwloop: {report['metric_name']} on the test split, computed by {runtime}; "
        f"{report['samples']} interleaved samples"
    )
    lines.append("* after the short recovery of the search, on the search split")
    if not report["best"]["significant"]:
        lines.append("the difference in latency is not significant")
    lines.extend(f"unstable: {reason}" for reason in report["unstable"])
    lines.extend(disturbance_lines(report.get("disturbance", {})))  # an older report has none
    lines.extend(f"warning: {text}" for text in report["warnings"])
    if "launch_overhead_ms" in report["best"]:
        plain_ms = report["best"]["launch_overhead_ms"]
        lines.append(f"a plain launch takes {plain_ms:.3f} ms more than the graph that was timed")
    lines.extend(copies_lines(report))
    lines.extend(
        energy_line(name, report[name]["energy_mj"])
        for name in ("baseline", "best")
        if "energy_mj" in report[name]
    )
    lines.extend(
        f"not measured: {item['what']}: {item['why']}" for item in report.get("not_measured", ())
    )
    if "precisions" in report:  # an older report has none
        groups = len(report["best"]["actions"])
        lines.extend(precision_lines(report["precisions"], groups=groups))
    if error["n"]:
        mark = "simulated " if report["target"]["simulated"] else ""
        lines.append(
            f"{mark}latency table: {report['table']['rows']} rows; on {error['n']} networks "
            f"outside the fit the median error is {error['median_abs_pct']} %, "
            f"{error['within_10pct']:.0%} within 10 %"
        )
    lines.extend(report["table"].get("row_doubts", ()))
    lines.append(
        f"{search['evaluations']} candidates by {search['agent']} ({search['failed']} failed) in "
        f"{search['wall_s']:.0f} s, seed {search['seed']}"
    )
    return lines


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    header, *rows = summary_rows(report)
    target = report["target"]
    found = target["fingerprint"]
    lines = [
        f"# hwloop: {report['best']['speedup']:.2f}x on {target['name']}"
        + (" (simulated)" if target["simulated"] else ""),
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(f"- {line}" for line in notes(report)),
        f"- target: {found['device']}, {found['runtime']} {found['runtime_version']}, "
        + ", ".join(f"{key} {value}" for key, value in found["settings"]),
        f"- measure again: `{report['command']}`",
        "",
        "## What was done to each group",
        "",
        "| group | layers | action |",
        "|---|---|---|",
        *(
            f"| {item['group']} | {len(item['layers'])} | {item['action']} |"
            for item in report["best"]["actions"]
        ),
    ]
    return printable("\n".join(lines) + "\n")
