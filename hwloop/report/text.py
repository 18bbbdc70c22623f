"""A report on the console: the rows of its table, and the sentences below."""

from __future__ import annotations

from typing import Any

from hwloop.run.beside import copies_lines, disturbance_lines, energy_line, precision_lines


def summary_rows(report: dict[str, Any]) -> list[list[str]]:
    """Header and rows of the result table: dense, best, then the usual settings."""
    metric = report["metric_name"]
    rows = [["network", "latency (95 %)", "speedup (95 %)", metric, "drop", "file", "MACs"]]
    rows.append(_row("dense", report["baseline"], simulated=report["target"]["simulated"]))
    rows.append(_row("hwloop", report["best"], simulated=report["target"]["simulated"]))
    for name, values in report["comparisons"].items():
        if "failed" not in values:
            mark = "" if "recovery_steps" in values else " *"
            rows.append(_row(f"{name}{mark}", values, simulated=report["target"]["simulated"]))
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
    return [
        *_goal(report),
        *_measurement(report),
        *(f"warning: {text}" for text in report["warnings"]),
        *_beside(report),
        *_table(report),
        *_search(report),
    ]


def _goal(report: dict[str, Any]) -> list[str]:
    goal = report["goal"]
    asked = ", ".join(f"{name} {value}" for name, value in goal["value"].items())
    return [f"goal ({asked}): " + ("met" if goal["met"] else "; ".join(goal["why_not"]))]


def _measurement(report: dict[str, Any]) -> list[str]:
    lines = []
    if report["target"]["simulated"]:
        lines.append("simulated: every latency and speedup is computed, none was measured")
    runtime = report["best"]["metric_runtime"]
    lines.append(
        f"{report['metric_name']} on the test split, computed by {runtime}; "
        f"{report['samples']} interleaved samples"
    )
    lines.extend(_recovery(report))
    if not report["best"]["significant"]:
        lines.append("the difference in latency is not significant")
    lines.extend(f"unstable: {reason}" for reason in report["unstable"])
    lines.extend(disturbance_lines(report.get("disturbance", {})))  # an older report has none
    return lines


def _recovery(report: dict[str, Any]) -> list[str]:
    """How long each network was trained, so that they can be compared."""
    comparisons = report["comparisons"].items()
    if any("recovery_steps" not in v for _, v in comparisons if "failed" not in v):
        return ["* after the short recovery of the search, on the search split"]  # an older report
    lines = []
    if report["best"].get("usual_setting") is not None:
        lines.append(f"what ships is {report['best']['usual_setting']}: the search found no better")
    if report["best"].get("recovery_steps") is not None:
        lines.append(f"hwloop: {report['best']['recovery_steps']} steps of distillation")
    by_steps: dict[int, list[str]] = {}
    for name, values in comparisons:
        if "failed" in values:
            lines.append(f"{name}: {values['failed']}")
        else:
            by_steps.setdefault(values["recovery_steps"], []).append(name)
    lines.extend(
        f"{'; '.join(names)}: {steps} steps of the same distillation, where anything was cut"
        for steps, names in sorted(by_steps.items())
    )
    if len(by_steps) > 1:
        lines.append("what is faster than the network that ships had as many, if it had a chance")
    return lines


def _beside(report: dict[str, Any]) -> list[str]:
    """What stands beside latency and accuracy, where the target tells."""
    lines = []
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
    return lines


def _table(report: dict[str, Any]) -> list[str]:
    lines, error = [], report["table"]["error"]
    if error["n"]:
        mark = "simulated " if report["target"]["simulated"] else ""
        lines.append(
            f"{mark}latency table: {report['table']['rows']} rows; on {error['n']} networks "
            f"outside the fit the median error is {error['median_abs_pct']} %, "
            f"{error['within_10pct']:.0%} within 10 %"
        )
    unpaid = report["table"].get("unpaid", {})
    if unpaid:
        kinds = ", ".join(f"{count} of {kind}" for kind, count in unpaid.items())
        lines.append(f"not searched, for by the rows they gain nothing: {kinds}")
    lines.extend(report["table"].get("row_doubts", ()))
    return lines


def _search(report: dict[str, Any]) -> list[str]:
    search = report["search"]
    return [
        f"{search['evaluations']} candidates by {search['agent']} ({search['failed']} failed) in "
        f"{search['wall_s']:.0f} s, seed {search['seed']}"
    ]
