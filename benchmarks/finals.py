"""How often does the network that ships miss the goal, and what does the rule cost in speed?

    python benchmarks/finals.py     # after by_hand.py; two minutes for each of its runs

Of the runs that by_hand.py left here, each network that was recovered fully is built again from its
weights and scored on every sample of the search split and of the test split. Then all of these
samples are dealt anew, many times, into a search split and a test split of the same sizes: every
deal ships what the rule picks by the one and is judged by the other, so that neither the luck of
one test split decides, nor is the luck of the network that is picked left out. The same is asked of
a bound that knows nothing of the judge's noise, at smaller and larger goals, and of the test split
as it is, with the search samples drawn anew; and how much all recovered networks lose on each.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from by_hand import FOLDER, Case, is_of_this_version, reopened
from by_hand_networks import NETWORKS
from common import Bench, print_table, read_result, write_result
from numpy.typing import NDArray
from safetensors.torch import load_file

from hwloop.compress.training import Schedule
from hwloop.measure.session import DeviceSession
from hwloop.records import Candidate
from hwloop.run.build import KeptWeights
from hwloop.run.memory import weights_name
from hwloop.runtimes.graph import OnnxModel
from hwloop.task import ClassificationTask
from hwloop.tasks.score import ScoredSplit

DRAWS = 400
SHARES = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Of the goal: there other networks than at the goal itself are near the limit."""

ONE_SIDED_80 = 0.8416
"""Standard deviations: of the bound that the rule holds against the goal."""

Hits = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Final:
    """A recovered network: its speedup, and for each sample whether it is right."""

    speedup: float
    faster: bool
    search: Hits
    test: Hits


def finals_of(case: Case) -> list[Final]:
    """The dense network first, then every full recovery of a run."""
    trained = NETWORKS[case.name](FOLDER)
    with reopened(trained, case) as bench:
        task = bench.task
        splits = [ScoredSplit(task, split()) for split in (task.search, task.test)]
        dense = [hits(split, bench.session, bench.evaluator.latencies.dense) for split in splits]
        found = [Final(speedup=1.0, faster=False, search=dense[0], test=dense[1])]
        for event in recovered_fully(case.run):
            model = _rebuilt(bench, case.run, event)
            with bench.session.holding(model):
                search, test = (hits(split, bench.session, model) for split in splits)
            found.append(
                Final(speedup=event["speedup"], faster=event["faster"], search=search, test=test)
            )
    return found


def recovered_fully(run: Path) -> Iterator[dict[str, Any]]:
    """The records of a run's full recoveries, in order."""
    for line in (run / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "finalist":
            yield event


def _rebuilt(bench: Bench, run: Path, event: dict[str, Any]) -> OnnxModel:
    candidate = Candidate.from_json(event["candidate"])
    schedule = Schedule(steps=event["steps"], cycle_steps=event["cycle_steps"])
    path = run / "candidates" / weights_name(candidate, schedule)
    kept = KeptWeights(steps=schedule.steps, source=str(path), state=load_file(path))
    return bench.evaluator.builder.restored(candidate, kept).model


def hits(split: ScoredSplit, session: DeviceSession, model: OnnxModel) -> Hits:
    outputs = split.finite_outputs(partial(session.infer, model))
    targets = np.concatenate([labels for _, labels in split.chunks()])
    found: Hits = outputs.argmax(axis=1) == targets
    return found


def shipped_by(finals: list[Final], goal: float, search: list[Hits], *, judged_on: float) -> Final:
    """What the rule ships by some of the samples.

    Args:
        search: of each of ``finals``.
        judged_on: samples that the bound is for; infinite for a bound of the drop itself.
    """
    best = finals[0]
    for final, right in zip(finals[1:], search[1:], strict=True):
        lost = search[0].astype(float) - right
        noise = lost.std() * math.sqrt(1 / len(lost) + 1 / judged_on)
        within = lost.mean() + ONE_SIDED_80 * noise <= goal
        if final.faster and within and final.speedup > best.speedup:
            best = final
    return best


def dealt_anew(finals: list[Final], goal: float) -> dict[str, Any]:
    """Both splits dealt from all samples: how often the rule misses, and what it ships.

    The same deals for both bounds. Speed is kept by a deal that is within the goal, of the fastest
    network whose drop on all samples is.
    """
    every = {id(final): np.concatenate([final.search, final.test]) for final in finals}
    dense = every[id(finals[0])]
    count, rng = len(finals[0].search), np.random.default_rng(0)
    judges = len(finals[0].test)
    drops = {key: float(dense.mean() - right.mean()) for key, right in every.items()}
    within = [final.speedup for final in finals if final.faster and drops[id(final)] <= goal]
    fastest = max(within, default=1.0)
    missed: dict[float, list[bool]] = {judges: [], math.inf: []}
    shipped = []
    for _ in range(DRAWS):
        order = rng.permutation(len(dense))
        search = [every[id(final)][order[:count]] for final in finals]
        test = order[count:]
        for judged_on, found in missed.items():
            best = shipped_by(finals, goal, search, judged_on=judged_on)
            found.append(dense[test].mean() - every[id(best)][test].mean() > goal)
            if judged_on == judges:
                shipped.append(best.speedup)
    kept = np.log(np.array(shipped) / fastest)[~np.array(missed[judges])]
    return {
        "goal": goal,
        "missed": float(np.mean(missed[judges])),
        "missed_by_a_bound_of_the_drop": float(np.mean(missed[math.inf])),
        "speedup_of_what_ships": float(np.median(shipped)),
        "fastest_within_the_goal": fastest,
        "speed_kept": float(np.exp(kept.mean())) if len(kept) else None,
    }


def on_the_test_split(finals: list[Final], goal: float) -> float:
    """Share of draws of the search samples whose choice misses on the test split as it is."""
    rng, dense = np.random.default_rng(0), finals[0]
    missed = []
    for _ in range(DRAWS):
        draw = rng.integers(0, len(dense.search), len(dense.search))
        search = [final.search[draw] for final in finals]
        best = shipped_by(finals, goal, search, judged_on=len(dense.test))
        missed.append(dense.test.mean() - best.test.mean() > goal)
    return float(np.mean(missed))


def mean_drops(finals: list[Final]) -> dict[str, float]:
    """Of all recovered networks, by split: what differs is the splits, as nothing was picked."""
    dense, *others = finals
    search = [dense.search.mean() - final.search.mean() for final in others]
    test = [dense.test.mean() - final.test.mean() for final in others]
    return {"search": float(np.mean(search)), "test": float(np.mean(test))}


def summary(case: Case, goal: float) -> dict[str, Any]:
    """What both ways say of one run."""
    finals = finals_of(case)
    return {
        "case": f"{case.name} {case.seed}",
        "finals": len(finals) - 1,
        "dealt_anew": [dealt_anew(finals, share * goal) for share in SHARES],
        "missed_on_the_test_split": on_the_test_split(finals, goal),
        "mean_drop": mean_drops(finals),
    }


def main() -> None:
    started = time.monotonic()
    found = []
    cases = [
        Case(name=kept["network"], seed=kept["seed"])
        for kept in read_result("by_hand").get("cases", [])
        if is_of_this_version(kept)
    ]
    for case in cases:
        trained = NETWORKS[case.name](FOLDER)
        if case.run.is_dir() and isinstance(trained.task, ClassificationTask):
            found.append(summary(case, trained.max_drop))
    rows = [
        [
            "case",
            "finals",
            "missed",
            "on the test split",
            "ships",
            "fastest within the goal",
            "mean drop, search / test",
        ]
    ]
    for each in found:
        at_goal = each["dealt_anew"][SHARES.index(1.0)]
        rows.append(
            [
                each["case"],
                str(each["finals"]),
                f"{at_goal['missed']:.0%}",
                f"{each['missed_on_the_test_split']:.0%}",
                f"{at_goal['speedup_of_what_ships']:.2f}x",
                f"{at_goal['fastest_within_the_goal']:.2f}x",
                " / ".join(f"{each['mean_drop'][split]:.4f}" for split in ("search", "test")),
            ]
        )
    print_table(rows)
    by_share = {
        str(share): float(np.mean([each["dealt_anew"][index]["missed"] for each in found]))
        for index, share in enumerate(SHARES)
    }
    print("missed of all deals, by share of the goal:", by_share)
    write_result("finals", {"draws": DRAWS, "missed": by_share, "runs": found}, started=started)


if __name__ == "__main__":
    main()
