"""How long does a latency table take of networks that can need thousands of rows?

    python benchmarks/table_build.py [NETWORK-PIXELS ...]

Networks of torchvision that concatenate, and transformers, with random weights: their rows are
enumerated and measured as by `hwloop table build`, each in a file of its own.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from common import CACHE, print_table, write_result
from table_error import RandomNetwork, opened

from hwloop.compress.reachable import row_plan
from hwloop.compress.subject import subject
from hwloop.measure import paired as measure
from hwloop.measure.profile import rules_for
from hwloop.measure.profile_file import load_profile
from hwloop.measure.progress import ConsoleProgress
from hwloop.task import load_model

NAMES = ("densenet121-224", "googlenet-224", "inception_v3-299", "maxvit_t-224", "swin_t-224")


def study(name: str) -> dict[str, Any]:
    """Rows of one network, and the seconds that they took."""
    profile, task, progress = load_profile("cpu"), RandomNetwork(name), ConsoleProgress()
    label = f"build_{name}"
    (CACHE / f"table_{label}.sqlite").unlink(missing_ok=True)
    with opened(label, profile) as (session, table):
        rules = rules_for(profile, session.isa)
        found = subject(task, load_model(task, None), rules, isa=session.isa, name=name)
        started = time.monotonic()
        plan = row_plan(found.network, found.rules)
        enumerate_s = time.monotonic() - started
        progress.stage(f"rows of {name}")
        started = time.monotonic()
        measured = measure.build_rows(
            session, table, found.reachable(), runtime=found.runtime, progress=progress.advance
        )
    return {
        "rows_measured": measured,
        "rows_interpolated": plan.interpolated,
        "enumerate_s": round(enumerate_s, 2),
        "measure_s": round(time.monotonic() - started, 1),
    }


def main() -> None:
    started = time.monotonic()
    found = {name: study(name) for name in sys.argv[1:] or NAMES}
    columns = ("rows_measured", "rows_interpolated", "enumerate_s", "measure_s")
    lines = [[name, *(str(item[column]) for column in columns)] for name, item in found.items()]
    print_table([["network", *columns], *lines])
    write_result("table_build", {"networks": found}, started=started)


if __name__ == "__main__":
    main()
