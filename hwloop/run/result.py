"""What was asked of a run, and what it found: the two records at its ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hwloop.compress.subject import Subject
from hwloop.findings import Fingerprint, Measurement
from hwloop.measure.profile import TargetProfile
from hwloop.records import Candidate, Goal, Trial

USUAL_RECIPES = {"whole-network INT8": 4, "uniform width 50 %": 2, "uniform width 50 %, INT8": 6}
"""What people would try without a search, as one action for every group."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a run; stored as ``config.json``.

    Attributes:
        model, task, data, target, host: as the user named them.
        simulate: latencies are computed from the target's datasheet.
        agent: a key of ``hwloop.search.methods.METHODS``.
        reward, lam: goal, or linear with its weight of the latency.
        evaluations: distinct candidates to evaluate.
        time_limit_s: the search ends after this many seconds; finals come on top.
        loop_steps: distillation steps of each candidate in the search.
        loop_allowance: drop allowed before full distillation, as a multiple of ``max_drop``
            (docs/decisions.md has the study).
        finalists, final_steps: candidates that are fully distilled, and for how many steps.
    """

    model: str | None
    task: str
    data: str | None
    target: str
    goal: Goal
    host: str | None = None
    simulate: bool = False
    agent: str = "dqn"
    reward: str = "goal"
    lam: float = 0.1
    evaluations: int = 48
    time_limit_s: float | None = None
    seed: int = 0
    table: str | None = None
    loop_steps: int = 20
    loop_allowance: float = 4.0
    finalists: int = 4
    final_steps: int = 300


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A finished run, for :mod:`hwloop.report`: nothing in it is computed there.

    Attributes:
        measurement: the chosen network against the dense one, by the final protocol.
        dense_metric, metric: on the test split, computed by the target.
        recipes: trials of the usual recipes, by name.
        table: rows, hits, misses and the prediction error outside the fit.
        summary: what was seen, in a sentence, for a run that ships the dense network.
        warnings: what is doubtful about the task, its data or the goal.
        engine: SHA-256 and audit of the engine that ships, where the runtime has one.
        energy_mj: per inference of the baseline and the best, where the target has power rails; or
            why it failed.
        copies: an inference with its copies to and from the GPU, and without, of the baseline and
            the best; None where nothing is copied; or why it failed.
        int8_refused: kinds of int8 rows that the target does not build, with its reasons.
    """

    settings: Settings
    profile: TargetProfile
    fingerprint: Fingerprint
    subject: Subject
    candidate: Candidate
    measurement: Measurement
    dense_metric: float
    metric: float
    size_bytes: int
    engine: dict[str, Any] | None
    energy_mj: dict[str, Any] | None
    copies: dict[str, Any] | None
    int8_refused: dict[str, str]
    trials: list[Trial]
    recipes: dict[str, Trial]
    table: dict[str, Any]
    summary: str
    warnings: tuple[str, ...]
    seconds_by_stage: dict[str, float]
    wall_s: float
