"""From a finished search to the network that ships: undo what earns nothing, distil, choose.

Nothing here looks at the test split; see :mod:`hwloop.run.stages` for the one time that it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from hwloop.compress.apply import compress
from hwloop.compress.recover import NO_RECOVERY, Recipe
from hwloop.compress.space import check_candidate, choices_of
from hwloop.compress.subject import Built
from hwloop.errors import CandidateError
from hwloop.files import sha256, write_atomically
from hwloop.findings import Outcome
from hwloop.measure.progress import Progress
from hwloop.measure.table import Predictor
from hwloop.parsing import (
    A_COUNT,
    A_DIGEST,
    ANY_NUMBER,
    a_flag,
    a_number,
    an_object,
    digest,
    optional,
)
from hwloop.records import KEEP, Candidate, Goal, Trial
from hwloop.run import choice
from hwloop.run.choice import Seen
from hwloop.run.evaluate import Evaluator
from hwloop.run.folder import RunFolder

SPACING = 0.98
"""Neighbours on the front must differ by 2 % in latency to be worth two distillations."""

MIN_GAIN = 0.01
"""A group's change is doubtful when undoing it is predicted to cost less than 1 %."""


KEPT_FINALIST = an_object(
    {
        "candidate": Candidate.from_json,
        "steps": A_COUNT,
        "latency_ms": a_number(1e-9, 1e9),
        "faster": a_flag,
        "speedup": ANY_NUMBER,
        "drop": ANY_NUMBER,
        "upper_drop": optional(ANY_NUMBER),
    }
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Finalist:
    """The network that ships, with its figures on the search split."""

    built: Built
    seen: Seen


class Finals:
    """Distils a few candidates and picks the one that ships, of everything that was seen."""

    def __init__(
        self,
        evaluator: Evaluator,
        folder: RunFolder,
        *,
        goal: Goal,
        recipe: Recipe,
        count: int,
        progress: Progress,
    ) -> None:
        self.evaluator = evaluator
        self.folder = folder
        self.goal = goal
        self.recipe = recipe
        self.count = count
        self.progress = progress
        self._built: dict[str, Built] = {}

    def choose(
        self, trials: Sequence[Trial], predictor: Predictor, *, loop_max_drop: float | None
    ) -> Finalist | None:
        """The best network seen, or None when the dense one is; see :mod:`hwloop.run.choice`.

        With a limit on the drop, the Pareto front is walked from the fastest trial within
        ``loop_max_drop``: to a faster one after a success, to a slower one after a failure. The
        last finalist is the safest one, unless one was within the goal before. Without such a
        limit, the trials with the smallest drops within the latency budget are distilled.
        """
        front = pareto_front([trial for trial in trials if _is_faster(trial)])
        budget_ms = self.goal.budget_ms(self.baseline_ms)
        if budget_ms is not None:
            in_time = [trial for trial in front if _outcome(trial).latency_ms <= budget_ms]
            front = in_time or front
        if self.goal.max_drop is None:
            for trial in sorted(front, key=_drop)[: self.count]:
                self._distilled(trial, predictor)
        else:
            self._walk(_thinned(front), predictor, limit=loop_max_drop or 0.0)
        return self._best(trials)

    @property
    def baseline_ms(self) -> float:
        return self.evaluator.baseline.latency_ms

    def seen(self, trials: Sequence[Trial]) -> list[Seen]:
        """Everything that was recovered, measured and scored: finalists of all times, trials."""
        kept = self.evaluator.store.all("finalist", self._kept)
        found = [_as_seen(value) for value in kept.values()]
        steps = self.evaluator.loop_recipe.steps
        for trial in trials:
            if trial.outcome is not None and trial.candidate != self._dense:
                found.append(_seen_of(trial, steps=steps))
        return found

    def summary(self, trials: Sequence[Trial]) -> str:
        """What was seen, for a run that ships the dense network."""
        failures = [trial.reason for trial in trials if trial.reason is not None]
        return choice.summary(self.seen(trials), self.goal, failures=failures)

    def _kept(self, value: Any) -> dict[str, Any]:
        """A stored finalist; it may have to be built again. Raises ValueError."""
        found: dict[str, Any] = KEPT_FINALIST(value)
        check_candidate(found["candidate"], len(self._dense.actions))
        if found["steps"] > self.recipe.steps:  # they can be raised, not lowered
            raise ValueError("it was distilled for longer than anybody asked for")
        return found

    # --------------------------------------------------------------------------- distilling

    def _walk(self, front: list[Trial], predictor: Predictor, *, limit: float) -> None:
        within = [index for index, trial in enumerate(front) if _drop(trial) <= limit]
        position = within[0] if within else len(front) - 1
        low, high = -1, len(front)
        met = False
        tried: list[Trial] = []
        for attempt in range(self.count):
            last = attempt == self.count - 1 and not met
            if last or not low < position < high:
                break
            tried.append(front[position])
            found = self._distilled(front[position], predictor)
            if found is not None and choice.meets(found, self.goal, baseline_ms=self.baseline_ms):
                met = True
                high, position = position, position - 1
            else:
                low, position = position, position + 1
        safest = min(front, key=_drop, default=None)
        if not met and safest is not None and safest not in tried:
            self._distilled(safest, predictor)

    def _distilled(self, trial: Trial, predictor: Predictor) -> Seen | None:
        """Undo what earns nothing, distil fully, score on the search split; None if it failed."""
        evaluator = self.evaluator
        try:
            candidate = self._reverted(trial.candidate, predictor)
            key = _key(candidate, self.recipe)
            if evaluator.store.get("finalist", key, self._kept) is None:
                built = self._rebuilt(candidate, self.recipe)
                measurement = evaluator.measurement(built)
                scored = evaluator.scored(built.model)
                evaluator.session.forget(built.model)
                self._built[key] = built
                found = {
                    "candidate": candidate,
                    "steps": self.recipe.steps,
                    "latency_ms": measurement.latency_ms,
                    "faster": choice.is_faster(measurement),
                    "speedup": 1 / measurement.ratio,
                    "drop": scored.drop,
                    "upper_drop": scored.upper_drop,
                }
                evaluator.store.add("finalist", key, found)
                self.folder.event("finalist", **found)
        except CandidateError as error:
            self.progress.say(f"a finalist failed: {error}")
            self.folder.event("finalist failed", candidate=trial.candidate, reason=str(error))
            return None
        value = evaluator.store.get("finalist", key, self._kept)
        self.progress.say(f"finalist: {self._figures(value)}")
        return _as_seen(value)

    def _figures(self, value: dict[str, Any]) -> str:
        speedup = f"{value['speedup']:.2f}x{self.evaluator.source.mark}"
        upper = value["upper_drop"]
        bound = "over the limit" if upper is None else f"80 % below {upper:+.4f}"
        return f"{speedup}, drop {value['drop']:+.4f} on the search split ({bound})"

    def _rebuilt(self, candidate: Candidate, recipe: Recipe) -> Built:
        """The recovered candidate; its weights are kept, so a resumed run does not train again."""
        evaluator, subject = self.evaluator, self.evaluator.subject
        key = _key(candidate, recipe)
        path = self.folder.path / "candidates" / f"{key[:16]}.safetensors"
        kept = evaluator.store.get("weights", key, A_DIGEST)
        data = path.read_bytes() if path.is_file() and kept is not None else b""
        if kept is not None and sha256(data) == kept:
            module = compress(
                subject.dense,
                subject.example,
                subject.network,
                candidate=candidate,
                rules=subject.rules,
            )
            try:
                module.load_state_dict(load(data))
                return evaluator.exported(candidate, module.eval())
            except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
                raise CandidateError("recover", f"{path} does not fit: {error}") from error
        self.progress.stage("distillation")
        built = evaluator.build(candidate, recipe, tick=self.progress.advance)
        data = weights(built)
        write_atomically(path, data)
        evaluator.store.put("weights", key, sha256(data))
        return built

    def _reverted(self, candidate: Candidate, predictor: Predictor) -> Candidate:
        """Undo the changes that are predicted to gain under 1 %, if that is measured to be free."""
        evaluator = self.evaluator
        actions = list(candidate.actions)
        for index, action in enumerate(actions):
            if action == KEEP:
                continue
            undone = [*actions[:index], KEEP, *actions[index + 1 :]]
            with_it = predictor(choices_of(Candidate(actions=tuple(actions))))
            without = predictor(choices_of(Candidate(actions=tuple(undone))))
            if without - with_it < MIN_GAIN * with_it:
                actions = undone
        reverted = Candidate(actions=tuple(actions))
        if reverted == candidate:
            return candidate
        before, after = evaluator.latency(candidate), evaluator.latency(reverted)
        if after is None:
            built = evaluator.build(reverted, NO_RECOVERY)
            after = evaluator.measurement(built)
            evaluator.session.forget(built.model)
        if before is None or after.latency_ms > before.latency_ms * (1 + MIN_GAIN):
            return candidate
        self.folder.event("reverted", before=candidate, after=reverted)
        return reverted

    # ----------------------------------------------------------------------------- choosing

    def _best(self, trials: Sequence[Trial]) -> Finalist | None:
        """The best of everything seen whose rebuilt network still keeps the rule."""
        pool = self.seen(trials)
        while True:
            chosen = choice.best(pool, self.goal, baseline_ms=self.baseline_ms)
            if chosen is None:
                self.progress.say(f"the dense network ships: {self.summary(trials)}")
                return None
            finalist = self._shipped(chosen)
            if finalist is not None:
                return finalist
            pool.remove(chosen)

    def _shipped(self, chosen: Seen) -> Finalist | None:
        """The network itself; one that was not just distilled is built and scored once more."""
        recipe = Recipe(steps=chosen.steps)
        built = self._built.get(_key(chosen.candidate, recipe))
        if built is not None:
            return Finalist(built=built, seen=chosen)
        if chosen.steps != self.recipe.steps:
            self.progress.say(
                f"the best that was seen had {chosen.steps} distillation steps, at drop "
                f"{chosen.drop:+.4f}: it ships"
            )
        try:
            built = self._rebuilt(chosen.candidate, recipe)
            scored = self.evaluator.scored(built.model)
            self.evaluator.session.forget(built.model)
        except CandidateError as error:
            self.progress.say(f"it cannot be built again: {error}")
            return None
        again = replace(chosen, drop=scored.drop, upper_drop=scored.upper_drop)
        if not choice.within_drop(again, self.goal):
            self.progress.say(f"built again it loses {scored.drop:+.4f}, more than allowed")
            return None
        return Finalist(built=built, seen=again)

    @property
    def _dense(self) -> Candidate:
        return self.evaluator.subject.dense_candidate


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other beats in both latency and drop, fastest first."""
    complete = [trial for trial in trials if trial.outcome is not None]
    front: list[Trial] = []
    for trial in sorted(complete, key=lambda item: (_outcome(item).latency_ms, _drop(item))):
        if not front or _drop(trial) < _drop(front[-1]):
            front.append(trial)
    return front


def weights(built: Built) -> bytes:
    """The module's state as safetensors; weights that are shared are written for each user."""
    alone = torch.contiguous_format
    state = built.module.state_dict()
    state = {name: value.detach().clone(memory_format=alone) for name, value in state.items()}
    return bytes(save(state))


def _as_seen(value: dict[str, Any]) -> Seen:
    return Seen(**{name: item for name, item in value.items() if name != "speedup"})


def _key(candidate: Candidate, recipe: Recipe) -> str:
    return digest([candidate, recipe])


def _seen_of(trial: Trial, *, steps: int) -> Seen:
    outcome = _outcome(trial)
    return Seen(
        candidate=trial.candidate,
        steps=steps,
        latency_ms=outcome.latency_ms,
        faster=_is_faster(trial),
        drop=outcome.metric_drop,
        upper_drop=outcome.upper_drop,
    )


def _thinned(front: list[Trial]) -> list[Trial]:
    """Drop trials that are hardly slower than the one before and hardly better."""
    kept: list[Trial] = []
    for trial in front:
        if kept and _outcome(kept[-1]).latency_ms > SPACING * _outcome(trial).latency_ms:
            kept[-1] = trial
        else:
            kept.append(trial)
    return kept


def _is_faster(trial: Trial) -> bool:
    measurement = None if trial.outcome is None else trial.outcome.measurement
    return measurement is not None and choice.is_faster(measurement)


def _outcome(trial: Trial) -> Outcome:
    assert trial.outcome is not None, "only complete trials are compared"
    return trial.outcome


def _drop(trial: Trial) -> float:
    return _outcome(trial).metric_drop
