"""What does a run spend its time on, and how much of its training helped?

    python benchmarks/run_cost.py earlier=runs/old now=runs/demo

By the events of finished runs. A full distillation *helped* when its network was the fastest within
the goal so far; the others taught the search at best. Runs of an earlier
hwloop can be told as well, where the folder is still there.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import print_table, write_result

from hwloop import stats

MINUTES = (2, 5, 10)


def cost(run: Path) -> dict[str, Any]:
    """Figures of one run."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    report = json.loads((run / "report.json").read_text())
    goal = report["goal"]["value"]["max_drop"]
    full = [event for event in events if event["event"] == "finalist"]
    helped, best = _helping(full, goal)
    ships = report["best"]["speedup"]
    steps = sum(event["steps"] for event in full)
    loop_steps = events[0]["settings"]["loop_steps"] or 0  # unless given: none, with batch norms
    trials = [event for event in events if event["event"] == "trial"]
    wasted = steps - sum(event["steps"] for event in helped) + loop_steps * len(trials)
    began = events[0]["time_s"]
    return {
        "wall_s": report["search"]["wall_s"],
        "seconds_by_stage": report["search"]["seconds_by_stage"],
        "evaluations": len(trials),
        "seconds_per_evaluation": _seconds_each(events),
        "full_distillations": len(full),
        "training_steps": steps + loop_steps * len(trials),
        "training_steps_that_did_not_help": wasted,
        "distilled": [
            {name: event[name] for name in ("speedup", "steps", "drop", "upper_drop")}
            for event in full
        ],
        "speedup": ships,
        "best_within_the_goal_after_minutes": {
            str(minutes): max(
                (speedup for at, speedup in best if at - began <= 60 * minutes), default=1.0
            )
            for minutes in MINUTES
        },
    }


def _helping(
    full: list[dict[str, Any]], goal: float
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """Distillations that made a new best within the goal, and when it was which speedup."""
    helped, best = [], [(0.0, 1.0)]
    for event in full:
        within = event["upper_drop"] is not None and event["upper_drop"] <= goal
        if within and event["faster"] and event["speedup"] > best[-1][1]:
            helped.append(event)
            best.append((event["time_s"], event["speedup"]))
    return helped, best[1:]


def _seconds_each(events: list[dict[str, Any]]) -> float:
    """Median from one trial's end to the next one's, where nothing lies between."""
    gaps = [
        after["time_s"] - before["time_s"]
        for before, after in pairwise(events)
        if before["event"] == after["event"] == "trial"
    ]
    return float(stats.median(gaps))


def main(arguments: list[str]) -> None:
    started = time.monotonic()
    found = {}
    for argument in arguments:
        name, _, folder = argument.partition("=")
        found[name] = cost(Path(folder))
    titles = ["run", "wall", "per evaluation", "full", "steps", "did not help", "after 5 min"]
    rows = [[*titles, "ships"]]
    for name, each in found.items():
        share = each["training_steps_that_did_not_help"] / max(each["training_steps"], 1)
        rows.append(
            [
                name,
                f"{each['wall_s']:.0f} s",
                f"{each['seconds_per_evaluation']:.1f} s",
                str(each["full_distillations"]),
                str(each["training_steps"]),
                f"{share:.0%}",
                f"{each['best_within_the_goal_after_minutes']['5']:.2f}x",
                f"{each['speedup']:.2f}x",
            ]
        )
    print_table(rows)
    write_result("run_cost", {"runs": found}, started=started)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    main(sys.argv[1:])
