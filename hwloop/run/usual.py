"""What people try without a search, on the terms of what is searched: evaluated, recovered fully.

It comes before the latency table, which takes minutes: whoever ends a run early has a network that
is worth something, and the search begins with two lessons. Under a limit on the drop they are
trained as a person would, the fastest first, until one is within it: what is slower than that one
could neither ship nor be the better choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hwloop.measure.trial import Trial
from hwloop.run import choice
from hwloop.run.front import outcome_of
from hwloop.run.race import Race
from hwloop.run.result import BY_HAND_IN_FP8, USUAL, tried_by_hand
from hwloop.run.trials import Trials
from hwloop.search.problem import BudgetSpent, Choices

FIRST_LESSONS = 2
"""That are recovered before anything is searched: INT8 as it is, and the fastest.

FP8 as it is comes before the fastest where a target has it; nothing of either is trained.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class UsualSettings:
    """The usual settings of one run.

    Attributes:
        asked: what was evaluated.
    """

    trials: Trials
    race: Race
    asked: dict[Choices, Trial] = field(default_factory=dict)

    def begin(self) -> bool:
        """Evaluate all of them and recover the first lessons; False if the time is up."""
        self.trials.work.stage("usual settings")
        subject = self.trials.evaluator.subject
        try:
            for candidate in self.trials.usual.values():
                choices = subject.choices(candidate)
                self.asked[choices] = self.trials.evaluate(choices, USUAL)
        except BudgetSpent:
            return False
        return self._recovered(self._in_turn()[: self._first])

    def finish(self) -> bool:
        """Recover the others that may be the best of them; False if the time is up."""
        return self._recovered(self._in_turn()[self._first :])

    @property
    def _first(self) -> int:
        settings = tried_by_hand(self.trials.evaluator.subject.rules.precisions)
        return FIRST_LESSONS + len(settings.keys() & BY_HAND_IN_FP8.keys())

    def _in_turn(self) -> list[Trial]:
        """What is not trained first, then the fastest."""
        found = [trial for trial in self.trials.by_hand().values() if trial.outcome is not None]
        return sorted(
            found, key=lambda trial: (trial.candidate.is_cut, outcome_of(trial).latency_ms)
        )

    def _recovered(self, trials: Sequence[Trial]) -> bool:
        steps = self.race.first_steps
        for trial in trials:
            if outrun(trial, self.trials, self.race) is not None:
                continue
            if not may_recover(trial, steps, trials=self.trials, race=self.race):
                return False
            self.race.recover(trial, steps)
        return True


def outrun(trial: Trial, trials: Trials, race: Race) -> str | None:
    """The fastest usual setting that meets a goal with a limit on the drop, if it is faster.

    Returns:
        Its name, or None.
    """
    goal, baseline_ms = race.goal, race.baseline_ms
    if goal.max_drop is None or trial.outcome is None:
        return None
    recovered = {name: race.of(other) for name, other in trials.by_hand().items()}
    faster = {
        name: seen.latency_ms
        for name, seen in recovered.items()
        if seen is not None
        and seen.latency_ms < trial.outcome.latency_ms
        and choice.meets(seen, goal, baseline_ms=baseline_ms)
    }
    return min(faster, key=lambda name: faster[name], default=None)


def may_recover(trial: Trial, steps: int, *, trials: Trials, race: Race) -> bool:
    """Whether there is time for it, or it was done before the time was up."""
    return not trials.work.out_of_time or race.is_stored(trial, steps)
