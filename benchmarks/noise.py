"""What does hwloop report when nothing changed? The demo network against itself, again and again.

    python benchmarks/noise.py [REPEATS]

Each repeat is one ``hwloop bench FILE``: a new worker, the bench protocol, its own verdict.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import print_table, write_result

from hwloop.compress.export import export_onnx
from hwloop.measure.bench import compare
from hwloop.measure.profile import load_profile
from hwloop.measure.progress import Progress
from hwloop.task import load_model
from hwloop.tasks.load import load_task

LIMIT = 0.015


def main(repeats: int) -> None:
    started = time.monotonic()
    task = load_task("demo")
    profile = load_profile("cpu")
    ratios, seconds, significant = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "demo.onnx"
        file.write_bytes(export_onnx(load_model(task, None), task.example()))
        for number in range(repeats):
            before = time.monotonic()
            record = compare([file], profile=profile, progress=Progress())[1]
            seconds.append(time.monotonic() - before)
            ratios.append(1 / record["speedup"])
            significant += record["significant"]
            if number % 10 == 9:
                print(f"{number + 1}: worst {max(abs(r - 1) for r in ratios):.2%}", flush=True)
    errors = np.abs(np.asarray(ratios) - 1)
    result = {
        "repeats": repeats,
        "within_1_5_pct": int((errors <= LIMIT).sum()),
        "not_significant": repeats - significant,
        "median_abs_pct": float(np.median(errors)) * 100,
        "worst_pct": float(errors.max()) * 100,
        "seconds_median": float(np.median(seconds)),
        "seconds_max": max(seconds),
        "ratios": ratios,
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
