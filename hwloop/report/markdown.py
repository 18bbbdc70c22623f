"""A report as a page of Markdown."""

from __future__ import annotations

from typing import Any

from hwloop.parsing import printable
from hwloop.report.text import notes, summary_rows


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
            f"| {item['group']} | {len(item['layers'])} | {item['action']}{_stays(item)} |"
            for item in report["best"]["actions"]
        ),
    ]
    return printable("\n".join(lines) + "\n")


def _stays(item: dict[str, Any]) -> str:
    """Why a group's width could not change; an older report does not say."""
    why = item.get("fixed_by")
    return f"; its width stays: {why}" if why else ""
