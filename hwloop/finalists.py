"""From a finished search to the network that ships: undo what earns nothing, distil, choose.

Nothing here looks at the test split; see :mod:`hwloop.stages` for the one time that it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load, save

from hwloop.compress.apply import compress
from hwloop.distill import NO_RECOVERY, Recipe
from hwloop.errors import CandidateError, HwloopError
from hwloop.evaluate import Built, Evaluator
from hwloop.files import RunFolder, write_atomically
from hwloop.progress import Progress
from hwloop.records import KEEP, Candidate, Goal, Measurement, Trial, TrialState
from hwloop.space import choices_of
from hwloop.table import Predictor

SPACING = 0.98
"""Neighbours on the front must differ by 2 % in latency to be worth two distillations."""

MIN_GAIN = 0.01
"""A group's change is doubtful when undoing it is predicted to cost less than 1 %."""

BOOTSTRAPS = 200
ONE_SIDED_80 = 80.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Finalist:
    """A fully distilled candidate with its figures on the search split.

    Attributes:
        upper_drop: one-sided 80 % bound of the drop, bootstrapped over the samples.
    """

    built: Built
    measurement: Measurement
    metric: float
    drop: float
    upper_drop: float


class Finals:
    """Distils a few candidates and picks the one that ships."""

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
        self._dense_outputs: NDArray[np.float32] | None = None

    def choose(
        self, trials: Sequence[Trial], predictor: Predictor, *, loop_max_drop: float | None
    ) -> Finalist | None:
        """The best finalist within the goal, or None when none of those tried is.

        With a limit on the drop, the Pareto front is walked from the fastest trial within
        ``loop_max_drop``: to a faster one after a success, to a slower one after a failure.
        Otherwise the trials with the smallest drops within the latency budget are tried.
        """
        front = pareto_front(trials)
        budget_ms = self.goal.budget_ms(self.evaluator.baseline.latency_ms)
        if budget_ms is not None:
            front = [trial for trial in front if _latency_ms(trial) <= budget_ms]
        if not front:
            return None
        if self.goal.max_drop is None:
            order = sorted(front, key=_drop)[: self.count]
            found = [self._distilled(trial, predictor) for trial in order]
            return min(filter(None, found), key=lambda item: item.drop, default=None)
        return self._walk(_thinned(front), predictor, loop_max_drop=loop_max_drop)

    def _walk(
        self, front: list[Trial], predictor: Predictor, *, loop_max_drop: float | None
    ) -> Finalist | None:
        limit = loop_max_drop if loop_max_drop is not None else 0.0
        within = [index for index, trial in enumerate(front) if _drop(trial) <= limit]
        position = within[0] if within else len(front) - 1
        low, high = -1, len(front)
        best: Finalist | None = None
        for _ in range(self.count):
            if not low < position < high:
                break
            found = self._distilled(front[position], predictor)
            if found is not None and self._meets(found):
                if best is None or found.measurement.latency_ms < best.measurement.latency_ms:
                    best = found
                high, position = position, position - 1
            else:
                low, position = position, position + 1
        return best

    def _meets(self, finalist: Finalist) -> bool:
        max_drop = self.goal.max_drop
        return max_drop is None or finalist.upper_drop <= max_drop

    def _distilled(self, trial: Trial, predictor: Predictor) -> Finalist | None:
        """Undo what earns nothing, distil fully, score on the search split; None if it failed."""
        evaluator = self.evaluator
        try:
            candidate = self._reverted(trial.candidate, predictor)
            built = self._distil(candidate)
            measurement = evaluator.measurement(built)
            with evaluator.clock("score"):
                outputs = evaluator.search_split.outputs(evaluator.run(built.model))
            evaluator.session.forget(built.model)
            metric = evaluator.search_split.metric(outputs)
        except CandidateError as error:
            self.progress.say(f"a finalist failed: {error}")
            self.folder.event("finalist failed", candidate=trial.candidate, reason=str(error))
            return None
        drop = evaluator.subject.task.drop(evaluator.baseline_metric, metric)
        finalist = Finalist(
            built=built,
            measurement=measurement,
            metric=metric,
            drop=drop,
            upper_drop=self._upper_drop(outputs),
        )
        self.folder.event(
            "finalist",
            candidate=candidate,
            latency_ms=measurement.latency_ms,
            metric_drop=drop,
            upper_drop=finalist.upper_drop,
        )
        speedup = f"{1 / measurement.ratio:.2f}x{evaluator.source.mark}"
        self.progress.say(
            f"finalist: {speedup}, drop {drop:+.4f} on the search split "
            f"(80 % below {finalist.upper_drop:+.4f})"
        )
        return finalist

    def _distil(self, candidate: Candidate) -> Built:
        """The distilled candidate; its weights are kept, so a resumed run does not train again."""
        evaluator, subject = self.evaluator, self.evaluator.subject
        path = self.folder.path / "candidates" / f"{candidate.digest()[:16]}.safetensors"
        if path.exists():
            module = compress(
                subject.dense,
                subject.example,
                subject.network,
                candidate=candidate,
                rules=subject.rules,
            )
            module.load_state_dict(load(path.read_bytes()))
            return evaluator.exported(candidate, module.eval())
        self.progress.stage("distillation")
        built = evaluator.build(candidate, self.recipe, tick=self.progress.advance)
        write_atomically(path, weights(built))
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
        before = Measurement.from_json(evaluator.store.get("latency", candidate.digest()))
        built = evaluator.build(reverted, NO_RECOVERY)
        after = evaluator.measurement(built)
        evaluator.session.forget(built.model)
        if after.latency_ms > before.latency_ms * (1 + MIN_GAIN):
            return candidate
        self.folder.event("reverted", before=candidate, after=reverted)
        return reverted

    def _upper_drop(self, outputs: NDArray[np.float32]) -> float:
        """One-sided 80 % bound of the drop: both networks scored on the same resampled inputs."""
        evaluator, task = self.evaluator, self.evaluator.subject.task
        if self._dense_outputs is None:
            run = evaluator.run(evaluator.dense_model)
            self._dense_outputs = evaluator.search_split.outputs(run)
        targets = np.concatenate([part for _, part in evaluator.search_split.chunks()])
        rng = np.random.default_rng(0)
        drops = []
        for _ in range(BOOTSTRAPS):
            chosen = rng.integers(0, len(targets), len(targets))
            dense = task.metric(self._dense_outputs[chosen], targets[chosen])
            small = task.metric(outputs[chosen], targets[chosen])
            drops.append(task.drop(dense, small))
        return float(np.percentile(drops, ONE_SIDED_80))


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other beats in both latency and drop, fastest first."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    front: list[Trial] = []
    for trial in sorted(complete, key=lambda item: (_latency_ms(item), _drop(item))):
        if not front or _drop(trial) < _drop(front[-1]):
            front.append(trial)
    return front


def weights(built: Built) -> bytes:
    """The module's state as safetensors."""
    state = {name: value.contiguous() for name, value in built.module.state_dict().items()}
    return bytes(save(state))


def _thinned(front: list[Trial]) -> list[Trial]:
    """Drop trials that are hardly slower than the one before and hardly better."""
    kept: list[Trial] = []
    for trial in front:
        if kept and _latency_ms(kept[-1]) > SPACING * _latency_ms(trial):
            kept[-1] = trial
        else:
            kept.append(trial)
    return kept


def _latency_ms(trial: Trial) -> float:
    if trial.outcome is None:
        raise HwloopError(f"trial {trial.number} has no outcome")
    return trial.outcome.latency_ms


def _drop(trial: Trial) -> float:
    if trial.outcome is None:
        raise HwloopError(f"trial {trial.number} has no outcome")
    return trial.outcome.metric_drop
