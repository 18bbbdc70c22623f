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

    @property
    def loop_max_drop(self) -> float | None:
        """The drop allowed before full distillation; None where the drop has no limit."""
        limit = self.goal.max_drop
        return None if limit is None else limit * self.loop_allowance
