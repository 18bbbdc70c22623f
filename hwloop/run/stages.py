"""One run, from a trained network to the files that ship; docs/architecture.md tells the story."""

from __future__ import annotations

from torch import nn

from hwloop.compress.recover import Recovery, short_recovery
from hwloop.compress.space import Masks
from hwloop.compress.subject import Subject
from hwloop.files import write_atomically
from hwloop.measure.predict import Predictor
from hwloop.measure.profile import TargetProfile
from hwloop.measure.progress import Progress
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.run import (
    calibrate,
    config,
    final,
    identity,
    sensitivity,
    target_limits,
)
from hwloop.run.admission import admitted, check_store, on_target
from hwloop.run.best import Best
from hwloop.run.clock import FinalsClock, RunClock
from hwloop.run.conclusion import conclusion, table_use
from hwloop.run.contenders import Contenders
from hwloop.run.distil import Distiller
from hwloop.run.evaluate import Evaluator, evaluator_of
from hwloop.run.final import Shipped
from hwloop.run.finalists import Finals
from hwloop.run.folder import RunFolder
from hwloop.run.memory import Figures, Notes
from hwloop.run.paying import NOISE, Paying, paying
from hwloop.run.race import FINAL_RUNGS, MOST_RUNGS, Race
from hwloop.run.result import Result
from hwloop.run.rounds import Rounds
from hwloop.run.settings import Settings
from hwloop.run.trials import Trials
from hwloop.run.usual import UsualSettings
from hwloop.run.work import Work
from hwloop.task import Task


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
    about, expected = admitted(
        settings, task=task, module=module, profile=profile, folder=folder, progress=progress
    )
    stored, inputs = about.stored, about.inputs
    config.settle(folder, stored, inputs)
    folder.create()
    with folder.locked():
        resumed = config.settle(folder, stored, inputs)  # nobody else can change it from here on
        with Store(folder.store_path) as store:
            notes, figures = Notes(store), Figures(store, identity.key_of(inputs))
            check_store(notes, folder, inputs)
            with DeviceSession(profile) as session:
                found = on_target(about, expected, session, notes=notes, figures=figures)
                config.write(folder, stored, inputs)
                notes.add_inputs(inputs)
                if found.fp16 is not None:
                    notes.add_fp16(found.fp16)
                folder.event("resumed" if resumed else "started", settings=stored)
                work = Work(
                    settings=settings,
                    profile=profile,
                    folder=folder,
                    notes=notes,
                    figures=figures,
                    session=session,
                    clock=RunClock(notes),
                    progress=progress,
                )
                return _through(work, found, about.warnings)


def _through(work: Work, found: Subject, warnings: tuple[str, ...]) -> Result:
    """The stages on the target, one after the other."""
    settings = work.settings
    write_atomically(work.folder.path / "dense.onnx", found.graph)
    with work.table() as table:
        found, int8_refused = target_limits.buildable(found, work.session, table, work.progress)
    evaluator = _baseline(work, found)
    best = Best(
        settings=config.portable(settings, work.folder.path),
        subject=found,
        folder=work.folder,
        fingerprint=work.session.fingerprint,
    )
    trials = Trials(work, evaluator, best=best)
    race = _race(trials)
    usual = UsualSettings(trials=trials, race=race)
    in_time = usual.begin()
    with work.table() as table:
        work.notes.add_rows_before(len(table))
        predictor = calibrate.fitted_predictor(evaluator, table, work.progress, seed=settings.seed)
        left = _paying(usual, predictor)
        if in_time:
            _search(usual, predictor, left.masks)
        shipped = _finalists(trials, race, predictor)
        further = evaluator.subject.plan.interpolated
        use = table_use(work, table, trials.all(), interpolated=further, unpaid=left.unpaid)
        figures = final.figures_of(shipped, work, evaluator)
        by_hand = final.by_hand(trials, race, work, shipped=shipped, final=figures)
    return conclusion(
        work,
        trials,
        shipped=shipped,
        final=figures,
        by_hand=by_hand,
        table=use,
        int8_refused=int8_refused,
        warnings=warnings,
    )


def _baseline(work: Work, found: Subject) -> Evaluator:
    """The dense network on the target, and what holds candidates against it."""
    work.stage("baseline")
    settings, profile, task = work.settings, work.profile, found.task
    made = evaluator_of(
        found,
        work.session,
        figures=work.figures,
        recovery=Recovery(task, found.dense, seed=settings.seed),
        loop_schedule=short_recovery(found.dense, settings.loop_steps),
        max_drop=settings.goal.max_drop,
        protocol=profile.protocols.loop,
        simulated=profile.simulated,
        clock=work.clock,
    )
    meaning = " without copies" if profile.kind.on_gpu else ""
    work.progress.say(
        f"baseline: {made.baseline.latency_ms:.3f} ms{made.source.mark}{meaning}, "
        f"{task.metric_name} {made.scorer.dense_metric:.4f} (search split)"
    )
    return made


def _race(trials: Trials) -> Race:
    """Who decides which candidate is recovered fully."""
    work, evaluator, settings = trials.work, trials.evaluator, trials.work.settings
    distiller = Distiller(
        evaluator=evaluator,
        folder=work.folder,
        steps=settings.final_steps,
        protocol=work.profile.protocols.bench,
        progress=work.progress,
    )
    return Race(
        distiller=distiller,
        goal=settings.goal,
        baseline_ms=evaluator.baseline.latency_ms,
        rungs=FINAL_RUNGS if settings.finish_s is None else MOST_RUNGS,
        on_recovered=trials.offer,
    )


def _paying(usual: UsualSettings, predictor: Predictor) -> Paying:
    """What is left to search when latencies are known, and what cannot pay, by kind."""
    work, found = usual.trials.work, usual.trials.evaluator.subject
    known = calibrate.taught(predictor, usual.asked.values(), found)
    return paying(found, known, noise=0.0 if work.profile.simulated else NOISE)


def _search(usual: UsualSettings, predictor: Predictor, masks: Masks) -> None:
    """One probe per action tells what it hurts; then the search itself."""
    work, evaluator = usual.trials.work, usual.trials.evaluator
    damage = sensitivity.damage(evaluator, work.progress, masks)
    work.clock.keep()
    rounds = Rounds(
        trials=usual.trials,
        race=usual.race,
        usual=usual,
        masks=masks,
        damage=damage,
        predictor=predictor,
    )
    rounds.search()


def _finalists(trials: Trials, race: Race, predictor: Predictor) -> Shipped:
    """The network that ships, and its files.

    Args:
        predictor: as it was fitted before the search.
    """
    work, evaluator, settings = trials.work, trials.evaluator, trials.work.settings
    everything = trials.all()
    work.stage("finalists")
    limit_s = settings.finish_s
    finals = Finals(
        evaluator=evaluator,
        race=race,
        goal=settings.goal,
        count=settings.finalists,
        predict_ms=calibrate.taught(predictor, everything, evaluator.subject),
        contenders=Contenders(
            evaluator=evaluator,
            race=race,
            protocol=work.profile.protocols.bench,
            progress=work.progress,
        ),
        progress=work.progress,
        clock=None if limit_s is None else FinalsClock(work.notes, limit_s),
    )
    chosen = finals.choose(everything, by_hand=list(trials.by_hand().values()))
    shipped = final.shipped(evaluator, chosen, summary=finals.summary(everything))
    drop = 0.0 if chosen is None else chosen.seen.drop
    engine = final.engine_of(shipped, work)
    trials.best.keep(shipped.built, {"stage": "final", "metric_drop": drop}, engine)
    work.notes.put_shipped()
    return shipped
