"""The last measurements of a run: the test split, once, and the long one; and the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from hwloop.compress.subject import Built
from hwloop.errors import CandidateError
from hwloop.measure import paired as measure
from hwloop.measure.answers import Engine
from hwloop.run.evaluate import Evaluator
from hwloop.run.finalists import Finalist
from hwloop.run.kept import FinalFigures
from hwloop.run.scoring import score
from hwloop.run.work import Work
from hwloop.runtimes.graph import OnnxModel
from hwloop.tasks.score import ScoredSplit

ENERGY_S = 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Shipped:
    """The network that ships.

    Attributes:
        steps: distillation steps of its recovery; None for the dense network.
        summary: what was seen, in a sentence, for a run that ships the dense network.
    """

    built: Built
    steps: int | None
    summary: str


def shipped(evaluator: Evaluator, chosen: Finalist | None, *, summary: str) -> Shipped:
    """The finalist that was chosen, or the dense network where none was."""
    if chosen is not None:
        return Shipped(built=chosen.built, steps=chosen.seen.steps, summary=summary)
    subject, dense = evaluator.subject, evaluator.latencies.dense
    built = Built(candidate=subject.dense_candidate, module=subject.dense, model=dense)
    return Shipped(built=built, steps=None, summary=summary)


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
    """The test split, once, on the device, and the long measurement against the dense one."""
    candidate, steps = shipped.built.candidate, shipped.steps
    known = work.figures.final(candidate, steps)
    if known is not None:
        return known
    found = _measured(shipped.built.model, work, evaluator)
    work.figures.add_final(candidate, steps, found)
    return work.figures.final(candidate, steps) or found


def _measured(best: OnnxModel, work: Work, evaluator: Evaluator) -> FinalFigures:
    work.stage("final measurement")
    dense, task, session = evaluator.latencies.dense, evaluator.subject.task, work.session
    with work.clock("measure"):
        measurement = measure.against(
            session,
            best,
            dense,
            protocol=work.profile.protocols.final,
            reference_latency_ms=0.0,
        )
    split = ScoredSplit(task, task.test())
    dense_metric = score(dense, split, session=session, clock=work.clock)
    metric = score(best, split, session=session, clock=work.clock)
    with work.clock("measure"):
        energy = _of_both(dense, best, partial(session.energy, seconds=ENERGY_S))
        copies = _of_both(dense, best, session.copies)
    work.clock.keep()
    return FinalFigures(
        measurement=measurement,
        dense_metric=dense_metric,
        metric=metric,
        energy_mj=energy,
        copies=copies,
    )


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
