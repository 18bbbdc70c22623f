"""One run, from a trained network to the files that ship; docs/architecture.md tells the story."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import nn

from hwloop import artefacts, measure, prepare, space
from hwloop.accuracy import ScoredSplit
from hwloop.answers import Engine
from hwloop.distill import Recipe, Recovery
from hwloop.errors import CandidateError, UsageError
from hwloop.evaluate import Built, Evaluator, Stopwatch, subject
from hwloop.files import RunFolder, write_atomically
from hwloop.finalists import Finalist, Finals
from hwloop.profile import TargetProfile
from hwloop.progress import Progress
from hwloop.records import (
    Measurement,
    Outcome,
    Trial,
    TrialState,
)
from hwloop.reward import Reward
from hwloop.runs import USUAL_RECIPES, Result, Settings
from hwloop.search.methods import METHODS
from hwloop.search.problem import BudgetSpent, Choices, Problem, Score
from hwloop.store import Store
from hwloop.table import LatencyTable, Predictor, prediction_error
from hwloop.targets import DeviceSession
from hwloop.task import Task, validate_task

ENGINE_RUNTIMES = ("tensorrt",)
ENERGY_S = 5.0


def run(
    settings: Settings,
    *,
    task: Task,
    module: nn.Module,
    profile: TargetProfile,
    folder: RunFolder,
    progress: Progress,
) -> Result:
    """Do the run, or what is left of it, and return everything that a report says.

    Raises:
        UsageError: the task, the network or the folder is wrong.
        TargetError: the device is lost; everything so far is stored.
    """
    progress.say(f"checking {task.name}")
    validate_task(task, module)
    folder.create()
    with folder.locked(), Store(folder.store_path) as store:
        resumed = folder.settle_config({**vars(settings), "goal": settings.goal})
        folder.event("resumed" if resumed else "started", settings=settings)
        with DeviceSession(profile) as session:
            return _Run(settings, task, module, profile, folder, store, session, progress).go()


class _Run:
    """The stages of one run, in the order of their methods."""

    def __init__(
        self,
        settings: Settings,
        task: Task,
        module: nn.Module,
        profile: TargetProfile,
        folder: RunFolder,
        store: Store,
        session: DeviceSession,
        progress: Progress,
    ) -> None:
        self.settings = settings
        self.profile = profile
        self.folder = folder
        self.store = store
        self.session = session
        self.progress = progress
        self._same_device(store)
        self.clock = Stopwatch(store.get("run", "seconds"))
        self._wall_before = float(store.get("run", "wall_s") or 0.0)
        self._started = time.monotonic()
        self.subject = subject(task, module, profile, session, name=settings.model or task.name)
        write_atomically(folder.path / "dense.onnx", self.subject.graph)
        progress.stage("baseline")
        self.evaluator = Evaluator(
            self.subject,
            session,
            store,
            recovery=Recovery(task, module, seed=settings.seed),
            loop_recipe=Recipe(steps=settings.loop_steps),
            protocol=profile.protocols.loop,
            simulated=profile.simulated,
            clock=self.clock,
        )
        base = self.evaluator.baseline
        progress.say(
            f"baseline: {base.latency_ms:.3f} ms{self.evaluator.source.mark}, "
            f"{task.metric_name} {self.evaluator.baseline_metric:.4f} (search split)"
        )
        goal = settings.goal
        self.loop_max_drop = (
            None if goal.max_drop is None else goal.max_drop * settings.loop_allowance
        )
        self.reward = Reward(kind=settings.reward, lam=settings.lam)
        self.trials = {trial.candidate.digest(): trial for trial in store.trials()}
        self._best_reward = self._reward_of_best()

    def go(self) -> Result:
        with self._table_store() as table_store:
            table = LatencyTable(table_store, self.session.fingerprint, self.profile.protocols.row)
            self.store.add("run", "rows_before", len(table))
            predictor = prepare.fitted_predictor(
                self.evaluator, table, self.progress, seed=self.settings.seed
            )
            problem = self._problem(predictor)
            self._keep_time()
            self._search(problem, predictor)
            finalist = self._final(predictor)
            return self._result(finalist, rows=len(table))

    # ----------------------------------------------------------------------------- search

    def _problem(self, predictor: Predictor) -> Problem:
        network, goal = self.subject.network, self.settings.goal
        baseline_ms = self.evaluator.baseline.latency_ms
        return Problem(
            network_features=prepare.features(network),
            masks=space.masks(network, self.subject.rules),
            predict_ms=predictor,
            baseline_ms=baseline_ms,
            damage=prepare.damage(self.evaluator, self.progress),
            budget_ms=goal.budget_ms(baseline_ms),
            max_drop=self.loop_max_drop,
        )

    def _search(self, problem: Problem, predictor: Predictor) -> None:
        self.progress.stage("search")
        self._problem_limits = problem

        def evaluate(choices: Choices, source: str) -> Score:
            trial = self.trials.get(space.candidate(choices).digest())
            if trial is None:
                if self._out_of_time():
                    raise BudgetSpent
                trial = self._trial(choices, source, predictor)
            return _score(trial)

        try:
            for index in USUAL_RECIPES.values():
                evaluate(space.uniform(problem.masks, index), "recipe")
        except BudgetSpent:
            return
        method = METHODS[self.settings.agent]
        method(
            problem,
            evaluate,
            evaluations=self.settings.evaluations,
            seed=self.settings.seed,
            reward=self.reward,
        )

    def _trial(self, choices: Choices, source: str, predictor: Predictor) -> Trial:
        candidate = space.candidate(choices)
        number = len(self.trials)
        started = time.monotonic()
        values: dict[str, Any] = {}
        try:
            outcome, built = self.evaluator.outcome(candidate)
            values = {"state": TrialState.COMPLETE, "outcome": outcome}
        except CandidateError as error:
            values = {"state": TrialState.FAILED, "reason": str(error)}
        trial = Trial(
            number=number,
            candidate=candidate,
            source=source,
            predicted_ms=predictor(choices),
            wall_s=time.monotonic() - started,
            **values,
        )
        self.store.add_trial(trial)
        self.trials[candidate.digest()] = trial
        self.folder.event("trial", number=number, source=source, state=trial.state)
        self._keep_time()
        if trial.outcome is not None:
            self._offer(trial, trial.outcome, built)
        total = self.settings.evaluations + len(USUAL_RECIPES)
        self.progress.advance(len(self.trials), total, self._best_so_far())
        return trial

    def _offer(self, trial: Trial, outcome: Outcome, built: Built | None) -> None:
        """Keep the best candidate so far loadable at any moment."""
        value = self.reward(_score(trial), self._problem_limits)
        if value <= self._best_reward:
            return
        self._best_reward = value
        if built is None:
            built = self.evaluator.build(trial.candidate, self.evaluator.loop_recipe)
        self._save(built, outcome_note={"stage": "search", "metric_drop": outcome.metric_drop})
        self.store.put("run", "best_reward", value)

    def _save(
        self, built: Built, outcome_note: dict[str, Any], engine: Engine | None = None
    ) -> None:
        files = artefacts.files(
            self.settings,
            self.subject,
            built,
            note=outcome_note,
            engine=engine,
            fingerprint=self.session.fingerprint,
        )
        self.folder.set_best(self.folder.save_candidate(artefacts.name(files), files))

    # ----------------------------------------------------------------------------- finals

    def _final(self, predictor: Predictor) -> Finalist:
        self.progress.stage("finalists")
        settings = self.settings
        finals = Finals(
            self.evaluator,
            self.folder,
            goal=settings.goal,
            recipe=Recipe(steps=settings.final_steps),
            count=settings.finalists,
            progress=self.progress,
        )
        trials = sorted(self.trials.values(), key=lambda trial: trial.number)
        chosen = finals.choose(trials, predictor, loop_max_drop=self.loop_max_drop)
        if chosen is None:
            self.progress.say("no finalist is within the goal: the dense network is kept")
            chosen = self._dense()
        note = {"stage": "final", "metric_drop": chosen.drop}
        self._save(chosen.built, note, self._engine(chosen.built))
        return chosen

    def _engine(self, built: Built) -> Engine | None:
        """The engine that ships, where the runtime has such a file; built where it runs."""
        if self.profile.runtime not in ENGINE_RUNTIMES:
            return None
        try:
            with self.clock("export"):
                engine = self.session.engine(built.model)
        except CandidateError as error:
            raise measure.unusable(self.session, "the network that ships", error) from error
        self.store.put("final", "engine", {"sha256": engine.sha256, "audit": engine.audit})
        return engine

    def _dense(self) -> Finalist:
        evaluator = self.evaluator
        built = Built(
            candidate=self.subject.dense_candidate,
            module=self.subject.dense,
            model=evaluator.dense_model,
        )
        metric = evaluator.baseline_metric
        return Finalist(
            built=built, measurement=evaluator.baseline, metric=metric, drop=0.0, upper_drop=0.0
        )

    def _result(self, finalist: Finalist, *, rows: int) -> Result:
        """The test split, once, on the device, and the long measurement against the dense one."""
        evaluator, task = self.evaluator, self.subject.task
        if self.store.get("final", "result") is None:
            self.progress.stage("final measurement")
            with self.clock("measure"):
                measurement = measure.against(
                    self.session,
                    finalist.built.model,
                    evaluator.dense_model,
                    protocol=self.profile.protocols.final,
                    reference_latency_ms=0.0,
                )
            split = ScoredSplit(task, task.test())
            dense_metric = evaluator.score(evaluator.dense_model, split)
            metric = evaluator.score(finalist.built.model, split)
            self._keep_time()
            found = {
                "candidate": finalist.built.candidate,
                "measurement": measurement,
                "dense_metric": dense_metric,
                "metric": metric,
                "search_drop": finalist.drop,
                "energy_mj": self._energy(finalist),
            }
            self.store.add("final", "result", found)
        final = self.store.get("final", "result")
        trials = sorted(self.trials.values(), key=lambda trial: trial.number)
        errors = [t for t in trials if t.outcome is not None and t.predicted_ms is not None]
        return Result(
            settings=self.settings,
            profile=self.profile,
            fingerprint=self.session.fingerprint,
            subject=self.subject,
            candidate=finalist.built.candidate,
            measurement=Measurement.from_json(final["measurement"]),
            dense_metric=final["dense_metric"],
            metric=final["metric"],
            size_bytes=len(finalist.built.model.data),
            engine=self.store.get("final", "engine"),
            energy_mj=final.get("energy_mj"),
            trials=trials,
            recipes=self._recipes(),
            table={
                "rows": rows,
                "hits": int(self.store.get("run", "rows_before")),
                "misses": rows - int(self.store.get("run", "rows_before")),
                "error": prediction_error(
                    [t.predicted_ms for t in errors if t.predicted_ms is not None],
                    [t.outcome.latency_ms for t in errors if t.outcome is not None],
                ),
            },
            seconds_by_stage=dict(self.clock.seconds),
            wall_s=self._wall_s(),
        )

    def _energy(self, finalist: Finalist) -> dict[str, Any] | None:
        """Energy per inference of both networks, where the target has power rails."""
        with self.clock("measure"):
            dense = self.session.energy(self.evaluator.dense_model, seconds=ENERGY_S)
            if dense is None:
                return None
            best = self.session.energy(finalist.built.model, seconds=ENERGY_S)
        return {"baseline": dense, "best": best}

    # ----------------------------------------------------------------------------- inside

    def _recipes(self) -> dict[str, Trial]:
        masks = space.masks(self.subject.network, self.subject.rules)
        found = {}
        for name, index in USUAL_RECIPES.items():
            choices = space.uniform(masks, index)
            trial = self.trials.get(space.candidate(choices).digest())
            if trial is not None:
                found[name] = trial
        return found

    def _same_device(self, store: Store) -> None:
        """A run belongs to one device: its figures cannot be continued on another."""
        found = self.session.fingerprint.digest()
        store.add("run", "fingerprint", {"digest": found, "is": self.session.fingerprint})
        before = store.get("run", "fingerprint")
        if before["digest"] != found:
            raise UsageError(
                f"{self.folder.path} was measured on {before['is']}, this is "
                f"{self.session.fingerprint}",
                "start a new run: --run DIR",
            )

    def _table_store(self) -> Store:
        """A store of its own, so that its closing leaves the run's open."""
        path = self.settings.table
        return Store(Path(path) if path else self.folder.store_path)

    def _out_of_time(self) -> bool:
        limit = self.settings.time_limit_s
        return limit is not None and self._wall_s() >= limit

    def _wall_s(self) -> float:
        return self._wall_before + time.monotonic() - self._started

    def _keep_time(self) -> None:
        self.store.put("run", "seconds", self.clock.seconds)
        self.store.put("run", "wall_s", self._wall_s())

    def _reward_of_best(self) -> float:
        stored = self.store.get("run", "best_reward")
        return float("-inf") if stored is None else float(stored)

    def _best_so_far(self) -> str:
        limit = self.loop_max_drop
        found = [
            trial.outcome
            for trial in self.trials.values()
            if trial.outcome is not None and (limit is None or trial.outcome.metric_drop <= limit)
        ]
        if not found:
            return ""
        best = min(found, key=lambda outcome: outcome.latency_ms)
        speedup = self.evaluator.baseline.latency_ms / best.latency_ms
        text = f"best {speedup:.2f}x{self.evaluator.source.mark} at drop {best.metric_drop:+.4f}"
        return f"{text} (before full distillation)"


def _score(trial: Trial) -> Score:
    if trial.outcome is None:
        return Score(metric_drop=None, latency_ms=None, failed=trial.reason)
    return Score(metric_drop=trial.outcome.metric_drop, latency_ms=trial.outcome.latency_ms)
