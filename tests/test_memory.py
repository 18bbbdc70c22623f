"""What a run remembers: under the kinds and keys of earlier runs, and as records again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwloop.compress.training import Schedule
from hwloop.errors import UsageError
from hwloop.findings import Measurement
from hwloop.measure.store import Store
from hwloop.parsing import canonical_json, digest, to_json
from hwloop.records import KEEP, Action, Candidate
from hwloop.run.clock import RunClock
from hwloop.run.kept import FinalFigures, KeptByHand, KeptFinalist, KeptScore, Probe
from hwloop.run.memory import Figures, Notes, weights_name

CANDIDATE = Candidate(actions=(Action(kind="prune", amount=0.75), KEEP))
RECIPE = Schedule(steps=20, batch_size=128, recalibration_batches=8)
RECOVERED = "fa397f5046ade91850f0d16f6f5869fd97c43ac62e9079dcb628c1b4dd6c1aba"
"""The key of both as stored runs have it: a key does not change without a version."""

SHA = "0" * 64
MEASURED = Measurement(samples_ms=(5.0,) * 25, reference_ms=(10.0,) * 25, reference_latency_ms=10.0)
SCORE = KeptScore(metric=0.9, drop=0.01, upper_drop=None, size_bytes=7)
FINALIST = KeptFinalist(
    candidate=CANDIDATE,
    steps=20,
    latency_ms=5.0,
    faster=True,
    speedup=2.0,
    drop=0.01,
    upper_drop=0.02,
)
FINAL = FinalFigures(
    measurement=MEASURED, dense_metric=0.9, metric=0.88, energy_mj=None, copies=None
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "s.sqlite") as found:
        yield found


def rows(store: Store) -> dict[tuple[str, str], Any]:
    with sqlite3.connect(store.path) as db:
        found = db.execute("SELECT kind, key, value FROM records").fetchall()
    return {(kind, key): json.loads(value) for kind, key, value in found}


def test_figures_are_stored_under_the_kinds_and_keys_of_earlier_runs(store: Store) -> None:
    figures = Figures(store, "me")
    figures.add_baseline_latency(MEASURED)
    figures.add_baseline_metric(0.9)
    figures.add_latency(CANDIDATE, MEASURED)
    figures.add_score(CANDIDATE, RECIPE, SCORE)
    figures.add_probe(1, "4", Probe(divergence=0.5, drop=0.01))
    figures.add_probe(1, "5", Probe(failed="no kernel"))
    figures.add_finalist(CANDIDATE, RECIPE, FINALIST)
    figures.put_weights(CANDIDATE, RECIPE, SHA)
    figures.add_final(CANDIDATE, RECIPE, FINAL)
    figures.add_final(CANDIDATE, None, FINAL)
    measured = json.loads(canonical_json(MEASURED))
    shared = {"drop": 0.01, "candidate": json.loads(canonical_json(CANDIDATE)), "steps": 20}
    final = {
        "measurement": measured,
        **{"dense_metric": 0.9, "metric": 0.88, "energy_mj": None, "copies": None},
    }
    assert rows(store) == {
        ("baseline/me", "latency"): measured,
        ("baseline/me", "metric"): 0.9,
        ("latency/me", CANDIDATE.digest()): measured,
        ("score/me", RECOVERED): {
            **{"metric": 0.9, "drop": 0.01, "upper_drop": None, "size_bytes": 7}
        },
        ("probe/me", "1/4"): {"divergence": 0.5, "drop": 0.01},
        ("probe/me", "1/5"): {"failed": "no kernel"},
        ("finalist/me", RECOVERED): {
            **{"latency_ms": 5.0, "faster": True, "speedup": 2.0, "upper_drop": 0.02},
            **shared,
            "cycle_steps": None,
        },
        ("weights/me", RECOVERED): SHA,
        ("final/me", RECOVERED): final,
        ("final/me", digest([CANDIDATE, None])): final,
    }
    assert weights_name(CANDIDATE, RECIPE) == f"{RECOVERED[:16]}.safetensors"


def test_notes_are_stored_under_the_kinds_and_keys_of_earlier_runs(store: Store) -> None:
    notes = Notes(store)
    assert (notes.stage(), notes.wall_s(), notes.shipped()) == (None, 0.0, False)
    assert notes.best_so_far() is None
    notes.add_inputs({"weights": SHA})
    notes.put_stage("search")
    notes.put_times({"train": 1.5}, wall_s=2.5)
    notes.add_rows_before(3)
    notes.put_best_so_far(FINALIST.seen)
    notes.put_shipped()
    notes.put_engine(sha256=SHA, audit={"layers": 7})
    assert rows(store) == {
        ("run", "inputs"): {"weights": SHA},
        ("run", "stage"): "search",
        ("run", "seconds"): {"train": 1.5},
        ("run", "wall_s"): 2.5,
        ("run", "rows_before"): 3,
        ("run", "best_so_far"): to_json(FINALIST.seen),
        ("run", "shipped"): True,
        ("final", "engine"): {"sha256": SHA, "audit": {"layers": 7}},
    }
    assert notes.shipped()
    assert (notes.rows_before(), notes.stage()) == (3, "search")
    assert notes.best_so_far() == FINALIST.seen


def test_what_is_read_back_is_the_record_that_was_stored(store: Store) -> None:
    figures = Figures(store, "me")
    assert figures.score(CANDIDATE, RECIPE) is None
    assert not figures.has_baseline()
    figures.add_score(CANDIDATE, RECIPE, SCORE)
    figures.add_score(CANDIDATE, RECIPE, replace(SCORE, metric=0.1))  # the first one stands
    figures.add_finalist(CANDIDATE, RECIPE, FINALIST)
    figures.add_final(CANDIDATE, None, FINAL)
    figures.add_probe(0, "1", Probe(failed="no kernel"))
    figures.add_baseline_latency(MEASURED)
    assert figures.has_baseline()
    assert figures.score(CANDIDATE, RECIPE) == SCORE
    assert figures.score(CANDIDATE, replace(RECIPE, steps=21)) is None
    assert figures.finalist(CANDIDATE, RECIPE) == FINALIST
    assert figures.final(CANDIDATE, None) == FINAL
    assert figures.final(CANDIDATE, RECIPE) is None
    figures.add_final(CANDIDATE, replace(RECIPE, cycle_steps=10), FINAL)
    assert figures.final(CANDIDATE, RECIPE) is None  # as many steps, but other weights
    figures.add_by_hand(CANDIDATE, RECIPE, KeptByHand(figures=FINAL, size_bytes=7))
    assert figures.by_hand(CANDIDATE, replace(RECIPE, cycle_steps=10)) is None
    assert figures.probe(0, "1") == Probe(failed="no kernel")
    assert Figures(store, "another").score(CANDIDATE, RECIPE) is None
    assert figures.done() == {"latencies": 0, "probes": 1, "finalists": 1}


def test_a_finalist_that_this_run_cannot_have_made_is_damage(store: Store) -> None:
    figures = Figures(store, "me")
    figures.add_finalist(CANDIDATE, RECIPE, FINALIST)
    assert figures.finalists(menu=CANDIDATE.actions, groups=2, most_steps=20) == [FINALIST]
    with pytest.raises(UsageError, match="longer than anybody asked for"):
        figures.finalists(menu=CANDIDATE.actions, groups=2, most_steps=19)
    with pytest.raises(UsageError, match="is damaged"):
        figures.finalists(menu=CANDIDATE.actions, groups=3, most_steps=20)


def test_a_runs_clock_goes_on_from_what_was_noted(store: Store) -> None:
    notes = Notes(store)
    notes.put_times({"train": 100.0}, wall_s=200.0)
    clock = RunClock(notes)
    with clock("train"):
        pass
    clock.keep()
    assert 100.0 <= notes.seconds()["train"] < 110.0
    assert 200.0 <= notes.wall_s() < 210.0
    assert clock.is_up(200.0)
    assert not clock.is_up(1000.0)
    assert not clock.is_up(None)
