"""The last measurements of a run: the test split, and the long one; and the engine.

Nothing is chosen by them: what ships is decided before, and the usual settings beside it are
judged in the same way so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hwloop.compress.subject import Built, Subject
from hwloop.compress.training import Schedule
from hwloop.errors import CandidateError
from hwloop.findings import Protocol
from hwloop.measure import paired as measure
from hwloop.measure.answers import Engine
from hwloop.measure.trial import Trial
from hwloop.run.choice import Seen
from hwloop.run.distil import schedule_of
from hwloop.run.evaluate import Evaluator
from hwloop.run.finalists import Finalist
from hwloop.run.front import outcome_of
from hwloop.run.kept import FinalFigures, KeptByHand
from hwloop.run.race import Race
from hwloop.run.result import ByHand, NetworkFigures
from hwloop.run.scoring import score
from hwloop.run.trials import Trials
from hwloop.run.usual import outrun
from hwloop.run.work import Work
from hwloop.runtimes.graph import OnnxModel
from hwloop.tasks.score import ScoredSplit

ENERGY_S = 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Shipped:
    """The network that ships.

    Attributes:
        schedule: of its recovery; None for the dense network.
        search_drop: of the metric on the search split; None for the dense network.
        summary: what was seen, in a sentence, for a run that ships the dense network.
    """

    built: Built
    schedule: Schedule | None
    search_drop: float | None
    summary: str

    @property
    def steps(self) -> int | None:
        """Distillation steps of its recovery; None for the dense network."""
        return None if self.schedule is None else self.schedule.steps

    @property
    def why_dense(self) -> str | None:
        """The summary where the dense network ships, else None."""
        return self.summary if self.schedule is None else None


def shipped(evaluator: Evaluator, chosen: Finalist | None, *, summary: str) -> Shipped:
    """The finalist that was chosen, or the dense network where none was."""
    if chosen is not None:
        return Shipped(
            built=chosen.built,
            schedule=schedule_of(chosen.seen),
            search_drop=chosen.seen.drop,
            summary=summary,
        )
    subject, dense = evaluator.subject, evaluator.latencies.dense
    built = Built(candidate=subject.dense_candidate, module=subject.dense, model=dense)
    return Shipped(built=built, schedule=None, search_drop=None, summary=summary)


def engine_of(shipped: Shipped, work: Work) -> Engine | None:
    """The engine that ships, where the runtime has such a file; built where it runs.

    Raises:
        TargetError: the target does not build what it built before.
    """
    if not work.ships_engines:
        return None
    try:
        with work.clock("export"):
            engine = work.session.engine(shipped.built.model)
    except CandidateError as error:
        raise measure.unusable(work.session, "the network that ships", error) from error
    work.notes.put_engine(sha256=engine.sha256, audit=engine.audit)
    return engine


def figures_of(shipped: Shipped, work: Work, evaluator: Evaluator) -> FinalFigures:
    """The test split, once, on the device, and the long measurement against the dense one.

    Raises:
        TargetError: the target does not run what it ran before, or not on the test split.
    """
    candidate, schedule = shipped.built.candidate, shipped.schedule
    known = work.figures.final(candidate, schedule)
    if known is not None:
        return known
    work.stage("final measurement")
    model, protocol = shipped.built.model, work.profile.protocols.final
    test = ScoredSplit(evaluator.subject.task, evaluator.subject.task.test())
    try:
        found = _measured(model, work, evaluator, test=test, protocol=protocol)
    except CandidateError as error:
        raise measure.unusable(work.session, "the network that ships", error) from error
    found = _with_extras(found, model, work, evaluator)
    work.figures.add_final(candidate, schedule, found)
    return work.figures.final(candidate, schedule) or found


def by_hand(
    trials: Trials, race: Race, work: Work, *, shipped: Shipped, final: FinalFigures
) -> dict[str, ByHand]:
    """The usual settings as they were recovered: the test split, and a bench against the dense one.

    Args:
        shipped, final: the network that ships and its figures; it may be one of these settings.
    """
    found, task = {}, trials.evaluator.subject.task
    test = ScoredSplit(task, task.test())  # read once for all of them
    ships = KeptByHand(figures=final, size_bytes=len(shipped.built.model.data))
    for name, trial in trials.by_hand().items():
        seen = race.of(trial)
        if seen is None:
            found[name] = ByHand(candidate=trial.candidate, failed=_why_not(trial, trials, race))
            continue
        try:
            same = (seen.candidate, schedule_of(seen)) == (
                shipped.built.candidate,
                shipped.schedule,
            )
            dense_metric = final.dense_metric
            known = ships if same else _judged(seen, race, work, test, dense_metric=dense_metric)
        except CandidateError as error:
            found[name] = ByHand(candidate=trial.candidate, failed=str(error))
            continue
        found[name] = _told(seen, known, trials.evaluator.subject)
    return found


def _why_not(trial: Trial, trials: Trials, race: Race) -> str:
    """Why a usual setting was not recovered."""
    faster = outrun(trial, trials, race)
    if faster is not None:
        speedup = race.baseline_ms / outcome_of(trial).latency_ms
        return f"not trained: at {speedup:.2f}x it is slower than {faster}, which meets the goal"
    return trial.reason or "it was not recovered: its recovery failed, or the time was up"


def _judged(
    seen: Seen, race: Race, work: Work, test: ScoredSplit, *, dense_metric: float
) -> KeptByHand:
    schedule = schedule_of(seen)
    known = work.figures.by_hand(seen.candidate, schedule)
    if known is not None:
        return known
    built = race.distiller.rebuilt(seen)
    with work.session.holding(built.model):
        figures = _measured(
            built.model,
            work,
            race.distiller.evaluator,
            test=test,
            protocol=work.profile.protocols.bench,
            dense_metric=dense_metric,
        )
    found = KeptByHand(figures=figures, size_bytes=len(built.model.data))
    work.figures.add_by_hand(seen.candidate, schedule, found)
    return work.figures.by_hand(seen.candidate, schedule) or found


def _told(seen: Seen, known: KeptByHand, subject: Subject) -> ByHand:
    figures = known.figures
    return ByHand(
        candidate=seen.candidate,
        steps=seen.steps,
        measurement=figures.measurement,
        network=NetworkFigures(
            metric=figures.metric,
            size_bytes=known.size_bytes,
            macs=subject.macs(seen.candidate),
        ),
        drop=subject.task.drop(figures.dense_metric, figures.metric),
        search_drop=seen.drop,
    )


def _measured(
    best: OnnxModel,
    work: Work,
    evaluator: Evaluator,
    *,
    test: ScoredSplit,
    protocol: Protocol,
    dense_metric: float | None = None,
) -> FinalFigures:
    """Timed against the dense network, and scored on the test split; so is that, unless known."""
    dense, session = evaluator.latencies.dense, work.session
    with work.clock("measure"):
        measurement = measure.against(
            session,
            best,
            dense,
            protocol=protocol,
            reference_latency_ms=0.0,
        )
    if dense_metric is None:
        dense_metric = score(dense, test, session=session, clock=work.clock)
    metric = score(best, test, session=session, clock=work.clock)
    work.clock.keep()
    return FinalFigures(
        measurement=measurement,
        dense_metric=dense_metric,
        metric=metric,
        energy_mj=None,
        copies=None,
    )


def _with_extras(
    found: FinalFigures, best: OnnxModel, work: Work, evaluator: Evaluator
) -> FinalFigures:
    """What a target says beside latency and metric, of the network that ships alone."""
    dense, session = evaluator.latencies.dense, work.session
    with work.clock("measure"):
        energy = _of_both(dense, best, partial(session.energy, seconds=ENERGY_S))
        copies = _of_both(dense, best, session.copies)
    work.clock.keep()
    return replace(found, energy_mj=energy, copies=copies)


def _of_both(
    dense: OnnxModel, best: OnnxModel, ask: Callable[[OnnxModel], dict[str, Any] | None]
) -> dict[str, Any] | None:
    """What a target says of both networks beside the latency; None where it says nothing.

    A run does not end because of it: what went wrong stands in its place.
    """
    try:
        baseline = ask(dense)
        return None if baseline is None else {"baseline": baseline, "best": ask(best)}
    except CandidateError as error:
        return {"failed": str(error)}
