"""One run, from a trained network to the files that ship; docs/architecture.md tells the story."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from hwloop.compress import space
from hwloop.compress.fp16_range import Kept
from hwloop.compress.recover import Recipe, Recovery
from hwloop.compress.subject import Built, Subject, check_has_choices, subject
from hwloop.errors import CandidateError
from hwloop.files import write_atomically
from hwloop.findings import Measurement
from hwloop.measure import paired as measure
from hwloop.measure.answers import Engine
from hwloop.measure.profile import TargetProfile, rules_for
from hwloop.measure.progress import Progress
from hwloop.measure.scope import Scope
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.measure.table import LatencyTable, Predictor, prediction_error, row_doubts
from hwloop.parsing import (
    A_COUNT,
    ANY_NUMBER,
    a_mapping,
    an_object,
    as_it_is,
    digest,
    optional,
)
from hwloop.records import Trial
from hwloop.run import artefacts, config, identity, prepare
from hwloop.run.admission import check_same_device, check_store, checked, expected_isa
from hwloop.run.beside import COPIES, ENERGY, of_both
from hwloop.run.evaluate import Evaluator, Stopwatch
from hwloop.run.finalists import Finalist, Finals
from hwloop.run.folder import RunFolder
from hwloop.run.result import USUAL_RECIPES, Result, Settings
from hwloop.run.trials import RECIPE, SHIPPED, Trials
from hwloop.runtimes.fp16 import FALLBACKS
from hwloop.runtimes.graph import OnnxModel
from hwloop.search.methods import METHODS
from hwloop.search.problem import BudgetSpent, Problem
from hwloop.search.reward import Reward
from hwloop.task import Task
from hwloop.tasks.score import ScoredSplit

ENGINE_RUNTIMES = ("tensorrt",)
ENERGY_S = 5.0
KEPT_FINAL = an_object(
    {
        "measurement": Measurement.from_json,
        "dense_metric": ANY_NUMBER,
        "metric": ANY_NUMBER,
        "energy_mj": optional(of_both(ENERGY)),
    },
    later={"copies": of_both(COPIES)},
)
KEPT_SECONDS = a_mapping(ANY_NUMBER)


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
        UsageError: the task, the network or the folder is wrong, or the run is about other inputs.
        TargetError: the device is lost; everything so far is stored.
    """
    folder.check()
    progress.say(f"checking {task.name}")
    name = settings.model or task.name
    graph, inputs, warnings = checked(settings, task, module, profile)
    found = subject(
        task,
        module,
        rules_for(profile, expected_isa(profile)),
        isa=expected_isa(profile),
        name=name,
        graph=graph,
    )
    check_has_choices(found)
    for warning in warnings:
        progress.say(f"warning: {warning}")
    stored = config.portable(settings, folder.path)
    config.settle(folder, stored, inputs)
    folder.create()
    with folder.locked():
        resumed = config.settle(folder, stored, inputs)  # nobody else can change it from here on
        with Store(folder.store_path) as store:
            check_store(store, folder, inputs)
            with DeviceSession(profile) as session:
                fp16 = _decided_fp16(store, found, identity.key_of(inputs))
                if session.isa != found.isa or fp16 != found.fp16:  # the target alone knows
                    found = subject(
                        task,
                        module,
                        rules_for(profile, session.isa),
                        isa=session.isa,
                        name=name,
                        graph=graph,
                        fp16=fp16,
                    )
                    check_has_choices(found)
                check_same_device(store, session, folder)
                if store.get("run", "fp16", Kept.from_json) is None:
                    found = prepare.held_on_target(found, session)
                config.write(folder, stored, inputs)
                store.add("run", "inputs", inputs)
                if found.fp16 is not None:
                    store.add("run", "fp16", found.fp16)
                folder.event("resumed" if resumed else "started", settings=stored)
                about = _About(settings, profile, found, identity.key_of(inputs), warnings)
                return _Run(about, folder, store, session, progress).go()


def _decided_fp16(store: Store, found: Subject, key: str) -> Kept | None:
    """What stays FP32 in this run: once decided it holds, or stored figures would not compare."""
    known: Kept | None = store.get("run", "fp16", Kept.from_json)
    if found.fp16 is None or known is not None:
        return known
    if Scope(store, key).get("baseline", "latency", as_it_is) is None:
        return found.fp16
    return Kept(operators=FALLBACKS[-1], reason="the run began when they were kept in any network")


@dataclass(frozen=True)
class _About:
    """What a run is asked for and about."""

    settings: Settings
    profile: TargetProfile
    subject: Subject
    identity: str
    warnings: tuple[str, ...]


class _Run:
    """The stages of one run, in the order of their methods."""

    def __init__(
        self,
        about: _About,
        folder: RunFolder,
        store: Store,
        session: DeviceSession,
        progress: Progress,
    ) -> None:
        self.settings = settings = about.settings
        self.profile = profile = about.profile
        self.folder = folder
        self.store = store
        self.scope = Scope(store, about.identity)
        self.session = session
        self.progress = progress
        self.warnings = about.warnings
        self.clock = Stopwatch(store.get("run", "seconds", KEPT_SECONDS))
        self._wall_before = float(store.get("run", "wall_s", ANY_NUMBER) or 0.0)
        self._started = time.monotonic()
        write_atomically(folder.path / "dense.onnx", about.subject.graph)
        with self._table() as table:
            found, self.int8_refused = prepare.buildable(about.subject, session, table, progress)
        self.subject = found
        self._stage("baseline")
        task = found.task
        self.evaluator = Evaluator(
            found,
            session,
            self.scope,
            recovery=Recovery(task, found.dense, seed=settings.seed),
            loop_recipe=Recipe(steps=settings.loop_steps),
            max_drop=settings.goal.max_drop,
            protocol=profile.protocols.loop,
            simulated=profile.simulated,
            clock=self.clock,
        )
        base = self.evaluator.baseline
        progress.say(
            f"baseline: {base.latency_ms:.3f} ms{self.evaluator.source.mark}{self._meaning}, "
            f"{task.metric_name} {self.evaluator.baseline_metric:.4f} (search split)"
        )
        goal = settings.goal
        self.loop_max_drop = (
            None if goal.max_drop is None else goal.max_drop * settings.loop_allowance
        )
        self.reward = Reward(kind=settings.reward, lam=settings.lam)
        self.trials = Trials(
            self.evaluator,
            store,
            folder,
            reward=self.reward,
            evaluations=settings.evaluations,
            loop_max_drop=self.loop_max_drop,
            progress=progress,
            out_of_time=self._out_of_time,
            after=self._keep_time,
            save=self._save,
        )

    def go(self) -> Result:
        with self._table() as table:
            self.store.add("run", "rows_before", len(table))
            predictor = prepare.fitted_predictor(
                self.evaluator, table, self.progress, seed=self.settings.seed
            )
            problem = self._problem(predictor)
            self._keep_time()
            self._search(problem, predictor)
            finalist = self._final(predictor)
            return self._result(finalist, rows=len(table), row_doubts=row_doubts(table.rows()))

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
            menu_features=space.menu_features(),
        )

    def _search(self, problem: Problem, predictor: Predictor) -> None:
        self._stage("search")
        evaluate = partial(self.trials.evaluate, problem=problem, predictor=predictor)
        try:
            for index in USUAL_RECIPES.values():
                evaluate(space.uniform(problem.masks, index), RECIPE)
        except BudgetSpent:
            return
        # To a method every candidate counts that it asks for, also the recipes and, in a run that
        # was given more evaluations, what was found before. The second limit makes up for them.
        wanted = self.settings.evaluations
        for limit in (wanted + len(USUAL_RECIPES), 2 * wanted + len(USUAL_RECIPES)):
            METHODS[self.settings.agent](
                problem,
                evaluate,
                evaluations=limit,
                seed=self.settings.seed,
                reward=self.reward,
            )
            if self.trials.searched >= wanted or self._out_of_time():
                return

    def _save(self, built: Built, note: dict[str, Any], engine: Engine | None = None) -> None:
        files = artefacts.files(
            config.portable(self.settings, self.folder.path),
            self.subject,
            built,
            note=note,
            engine=engine,
            fingerprint=self.session.fingerprint,
        )
        self.folder.set_best(self.folder.save_candidate(artefacts.name(files), files))

    # ----------------------------------------------------------------------------- finals

    def _final(self, predictor: Predictor) -> Finalist | None:
        """The network that ships, as a finalist, or None for the dense one; and its files."""
        self._stage("finalists")
        settings = self.settings
        finals = Finals(
            self.evaluator,
            self.folder,
            goal=settings.goal,
            recipe=Recipe(steps=settings.final_steps),
            count=settings.finalists,
            progress=self.progress,
        )
        trials = self.trials.all()
        chosen = finals.choose(trials, predictor, loop_max_drop=self.loop_max_drop)
        self.summary = finals.summary(trials)
        built = self._dense() if chosen is None else chosen.built
        drop = 0.0 if chosen is None else chosen.seen.drop
        self._save(built, {"stage": "final", "metric_drop": drop}, self._engine(built))
        self.store.put("run", SHIPPED, True)
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

    def _dense(self) -> Built:
        return Built(
            candidate=self.subject.dense_candidate,
            module=self.subject.dense,
            model=self.evaluator.dense_model,
        )

    def _result(self, finalist: Finalist | None, *, rows: int, row_doubts: list[str]) -> Result:
        """The test split, once, on the device, and the long measurement against the dense one."""
        built = self._dense() if finalist is None else finalist.built
        key = digest([built.candidate, None if finalist is None else finalist.seen.steps])
        if self.scope.get("final", key, KEPT_FINAL) is None:
            self.scope.add("final", key, self._measured(built))
        final = self.scope.get("final", key, KEPT_FINAL)
        hits = int(self.store.get("run", "rows_before", A_COUNT))
        trials = self.trials.all()
        errors = [t for t in trials if t.outcome is not None and t.predicted_ms is not None]
        return Result(
            settings=self.settings,
            profile=self.profile,
            fingerprint=self.session.fingerprint,
            subject=self.subject,
            candidate=built.candidate,
            measurement=final["measurement"],
            dense_metric=final["dense_metric"],
            metric=final["metric"],
            size_bytes=len(built.model.data),
            engine=self.store.get("final", "engine", a_mapping(as_it_is)),
            energy_mj=final["energy_mj"],
            copies=final["copies"],
            int8_refused=self.int8_refused,
            trials=trials,
            recipes=self._recipes(),
            table={
                "rows": rows,
                "hits": hits,
                "misses": rows - hits,
                "row_doubts": row_doubts,
                "error": prediction_error(
                    [t.predicted_ms for t in errors if t.predicted_ms is not None],
                    [t.outcome.latency_ms for t in errors if t.outcome is not None],
                ),
            },
            summary=self.summary,
            warnings=self.warnings,
            seconds_by_stage=dict(self.clock.seconds),
            wall_s=self._wall_s(),
        )

    def _measured(self, built: Built) -> dict[str, Any]:
        self._stage("final measurement")
        evaluator, task = self.evaluator, self.subject.task
        with self.clock("measure"):
            measurement = measure.against(
                self.session,
                built.model,
                evaluator.dense_model,
                protocol=self.profile.protocols.final,
                reference_latency_ms=0.0,
            )
        split = ScoredSplit(task, task.test())
        dense_metric = evaluator.score(evaluator.dense_model, split)
        metric = evaluator.score(built.model, split)
        energy = self._of_both(built, partial(self.session.energy, seconds=ENERGY_S))
        copies = self._of_both(built, self.session.copies)
        self._keep_time()
        return {
            "measurement": measurement,
            "dense_metric": dense_metric,
            "metric": metric,
            "energy_mj": energy,
            "copies": copies,
        }

    def _of_both(
        self, built: Built, ask: Callable[[OnnxModel], dict[str, Any] | None]
    ) -> dict[str, Any] | None:
        """What a target says of both networks beside the latency; None where it says nothing.

        A run does not end because of it: what went wrong stands in its place.
        """
        try:
            with self.clock("measure"):
                dense = ask(self.evaluator.dense_model)
                if dense is None:
                    return None
                return {"baseline": dense, "best": ask(built.model)}
        except CandidateError as error:
            return {"failed": str(error)}

    # ----------------------------------------------------------------------------- inside

    def _recipes(self) -> dict[str, Trial]:
        masks = space.masks(self.subject.network, self.subject.rules)
        found = {}
        for name, index in USUAL_RECIPES.items():
            choices = space.uniform(masks, index)
            trial = self.trials.find(space.candidate(choices))
            # Where a recipe has no legal action anywhere, it is the dense network under its name.
            if trial is not None and trial.candidate != self.subject.dense_candidate:
                found[name] = trial
        return found

    @contextmanager
    def _table(self) -> Iterator[LatencyTable]:
        """In a store of its own, so that its closing leaves the run's open."""
        path = self.settings.table
        with Store(Path(path) if path else self.folder.store_path) as store:
            yield LatencyTable(store, self.session.fingerprint, self.profile.protocols.row)

    def _out_of_time(self) -> bool:
        limit = self.settings.time_limit_s
        return limit is not None and self._wall_s() >= limit

    @property
    def _meaning(self) -> str:
        return " without copies" if self.profile.runtime in ENGINE_RUNTIMES else ""

    def _wall_s(self) -> float:
        return self._wall_before + time.monotonic() - self._started

    def _keep_time(self) -> None:
        self.store.put("run", "seconds", self.clock.seconds)
        self.store.put("run", "wall_s", self._wall_s())

    def _stage(self, name: str) -> None:
        """Told to the user, and kept for whoever asks how far the run is."""
        self.progress.stage(name)
        self.store.put("run", "stage", name)
