"""What does hwloop report when nothing changed? The demo network against itself, again and again.

    python benchmarks/noise.py [REPEATS]

Each repeat is one ``hwloop bench FILE``: a new worker, the bench protocol, its own verdict.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import print_table, write_result

from hwloop.compress.export import export_onnx
from hwloop.measure.bench import compare
from hwloop.measure.profile_file import load_profile
from hwloop.measure.progress import Progress
from hwloop.task import load_model
from hwloop.tasks.load import load_task

LIMIT = 0.015


def compared(repeats: int) -> dict[str, list[Any]]:
    """The ratios, the seconds that each took, and whether it was called significant."""
    task = load_task("demo")
    profile = load_profile("cpu")
    found: dict[str, list[Any]] = {"ratio": [], "seconds": [], "significant": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "demo.onnx"
        file.write_bytes(export_onnx(load_model(task, None), task.example()))
        for number in range(repeats):
            before = time.monotonic()
            record = compare([file], profile=profile, progress=Progress())[1]
            found["seconds"].append(time.monotonic() - before)
            found["ratio"].append(1 / record["speedup"])
            found["significant"].append(record["significant"])
            if number % 10 == 9:
                worst = max(abs(ratio - 1) for ratio in found["ratio"])
                print(f"{number + 1}: worst {worst:.2%}", flush=True)
    return found


def main(repeats: int) -> None:
    started = time.monotonic()
    found = compared(repeats)
    errors = np.abs(np.asarray(found["ratio"]) - 1)
    result = {
        "repeats": repeats,
        "within_1_5_pct": int((errors <= LIMIT).sum()),
        "not_significant": repeats - sum(found["significant"]),
        "median_abs_pct": float(np.median(errors)) * 100,
        "worst_pct": float(errors.max()) * 100,
        "seconds_median": float(np.median(found["seconds"])),
        "seconds_max": max(found["seconds"]),
        "ratios": found["ratio"],
    }
    print_table(
        [
            ["repeats", "within 1.5 %", "not significant", "median", "worst", "seconds (max)"],
            [
                str(repeats),
                str(result["within_1_5_pct"]),
                str(result["not_significant"]),
                f"{result['median_abs_pct']:.2f} %",
                f"{result['worst_pct']:.2f} %",
                f"{result['seconds_median']:.1f} ({result['seconds_max']:.1f})",
            ],
        ]
    )
    write_result("noise", result, started=started)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
