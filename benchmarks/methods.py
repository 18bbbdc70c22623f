"""What does each compression method add: alone, and left out of all?

    python benchmarks/methods.py work demo [VARIANT ...]    resumable, 5 to 15 minutes a variant
    python benchmarks/methods.py report

One run for each variant of the space, with the same seed, evaluations, recoveries and rule: all
methods, one of them alone, all but one, and without those that shipped profiles do not name. What
is compared is the speedup of the network that ships, within the goal, on this CPU.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from by_hand_networks import NETWORKS
from common import CACHE, cpu_profile, print_table, write_result

import hwloop
from hwloop.files import write_atomically
from hwloop.measure.progress import ConsoleProgress

FOLDER, NETWORKS_FOLDER = CACHE / "methods", CACHE / "by_hand"
KINDS = ("prune", "drop", "lowrank", "resize")
METHODS = (*KINDS, "int8")
USUAL = ("prune", "drop", "int8")
SEED = 0

VARIANTS: dict[str, tuple[str, ...]] = {
    "all": METHODS,
    "as shipped": USUAL,
    **{f"{method} alone": (method,) for method in METHODS},
    **{f"without {method}": tuple(m for m in METHODS if m != method) for method in METHODS},
}


def profile(name: str, methods: tuple[str, ...]) -> str:
    """A target with these methods and no others."""
    return cpu_profile(
        FOLDER / f"{name.replace(' ', '-')}.toml",
        name,
        precisions=["base", *(["int8"] if "int8" in methods else [])],
        kinds=["keep", *(kind for kind in KINDS if kind in methods)],
    )


def work(network: str, variant: str) -> None:
    path = FOLDER / f"{network}-{variant.replace(' ', '-')}.json"
    if path.is_file():
        return
    trained = NETWORKS[network](NETWORKS_FOLDER)
    started = time.monotonic()
    report = hwloop.optimize(
        None if trained.shipped else trained.network,
        task=trained.shipped or trained.task,
        target=profile(variant, VARIANTS[variant]),
        run=FOLDER / f"run-{path.stem}",
        max_drop=trained.max_drop,
        seed=SEED,
        final_steps=trained.steps,
        progress=ConsoleProgress(),
    )
    best = report["best"]
    found: dict[str, Any] = {
        "network": network,
        "variant": variant,
        "methods": list(VARIANTS[variant]),
        "goal_met": report["goal"]["met"],
        "max_drop": trained.max_drop,
        "wall_s": round(time.monotonic() - started, 1),
        "table": report["table"],
        **{
            key: best[key]
            for key in ("speedup", "speedup_ci95", "metric_drop", "search_drop", "recovery_steps")
        },
        "actions": best["actions"],
    }
    write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())


def report() -> None:
    started = time.monotonic()
    cases = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    rows = [["network", "methods", "speedup", "95 %", "drop", "not searched"]]
    for case in cases:
        low, high = case["speedup_ci95"]
        unpaid = ", ".join(f"{count} {kind}" for kind, count in case["table"]["unpaid"].items())
        rows.append(
            [
                case["network"],
                case["variant"],
                f"{case['speedup']:.2f}x",
                f"{low:.2f}-{high:.2f}",
                f"{case['metric_drop']:+.4f}",
                unpaid,
            ]
        )
    print_table(rows)
    write_result("methods", {"seed": SEED, "cases": cases}, started=started)


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["work"] and len(arguments) > 1 and arguments[1] in NETWORKS:
        for folder in (FOLDER, NETWORKS_FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
        for variant in arguments[2:] or VARIANTS:
            work(arguments[1], variant)
    elif arguments == ["report"]:
        report()
    else:
        raise SystemExit(f"{__doc__}\nnetworks: {', '.join(NETWORKS)}; {', '.join(VARIANTS)}")


if __name__ == "__main__":
    main(sys.argv[1:])
