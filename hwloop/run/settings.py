"""What was asked of a run: the record that is stored with it."""

from __future__ import annotations

from dataclasses import dataclass

from hwloop.records import Goal


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
        loop_steps: gradient steps of each candidate in the search; None for as many as rank
            candidates best for their time.
        finalists, final_steps: full distillations after the search, and their steps; a candidate
            may have several, each of which goes on from the one before.
        finish_s: distill finalists for so many seconds instead, and for longer each, as long as
            that is expected to gain.
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
    loop_steps: int | None = None
    finalists: int = 8
    final_steps: int = 600
    finish_s: float | None = None
