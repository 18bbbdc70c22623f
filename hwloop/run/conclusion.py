"""A finished run as the record that is told: its figures put together, the verdict among them."""

from __future__ import annotations

from hwloop.compress import space
from hwloop.compress.methods import describe
from hwloop.compress.subject import Subject
from hwloop.measure.predict import prediction_error
from hwloop.measure.profile import TargetProfile
from hwloop.measure.table import LatencyTable, row_doubts
from hwloop.measure.trial import Trial
from hwloop.records import Candidate, Goal
from hwloop.run.final import Shipped
from hwloop.run.front import pareto_front
from hwloop.run.kept import FinalFigures
from hwloop.run.result import (
    ByHand,
    Done,
    NetworkFigures,
    Precisions,
    Recovered,
    Result,
    TableUse,
    Target,
)
from hwloop.run.trials import Trials
from hwloop.run.verdict import Verdict, verdict_on
from hwloop.run.work import Work


def conclusion(
    work: Work,
    trials: Trials,
    *,
    shipped: Shipped,
    final: FinalFigures,
    by_hand: dict[str, ByHand],
    table: TableUse,
    int8_refused: dict[str, str],
    warnings: tuple[str, ...],
) -> Result:
    """Everything that a report says.

    Args:
        int8_refused: kinds of int8 rows that the target does not build, with its reasons.
        warnings: what is doubtful about the task, its data or the goal.
    """
    settings, subject, profile = work.settings, trials.evaluator.subject, work.profile
    built, everything, dense = shipped.built, trials.all(), subject.dense_candidate
    drop = subject.task.drop(final.dense_metric, final.metric)
    return Result(
        settings=settings,
        target=_target(profile),
        fingerprint=work.session.fingerprint,
        verdict=_verdict(settings.goal, shipped, final, drop),
        measurement=final.measurement,
        metric_name=subject.task.metric_name,
        metric_runtime=profile.kind.computed_by(work.session.fingerprint.runtime),
        baseline=_network(subject, dense, graph=subject.graph, metric=final.dense_metric),
        best=_network(subject, built.candidate, graph=built.model.data, metric=final.metric),
        drop=drop,
        done=_done(subject, built.candidate),
        precisions=_precisions(subject, int8_refused),
        engine=work.notes.engine(),
        energy_mj=final.energy_mj,
        copies=final.copies,
        menu=subject.menu,
        trials=everything,
        recovery=_recovered(trials, shipped),
        by_hand=by_hand,
        front=pareto_front(everything),
        table=table,
        warnings=warnings,
        seconds_by_stage=dict(work.clock.seconds),
        wall_s=work.clock.wall_s(),
    )


def table_use(
    work: Work,
    table: LatencyTable,
    trials: list[Trial],
    *,
    interpolated: int,
    unpaid: dict[str, int],
) -> TableUse:
    """What the latency table had and what it was worth, on networks outside the fit."""
    rows, hits = len(table), work.notes.rows_before()
    pairs = [
        (trial.predicted_ms, trial.outcome.latency_ms)
        for trial in trials
        if trial.outcome is not None and trial.predicted_ms is not None
    ]
    return TableUse(
        rows=rows,
        hits=hits,
        misses=rows - hits,
        row_doubts=row_doubts(table.rows(), interpolated=interpolated),
        unpaid=unpaid,
        error=prediction_error(
            [predicted_ms for predicted_ms, _ in pairs], [measured_ms for _, measured_ms in pairs]
        ),
    )


def _target(profile: TargetProfile) -> Target:
    return Target(
        name=profile.name,
        without_copies=profile.kind.on_gpu,
        verified=profile.verified,
        simulated=profile.simulated,
    )


def _network(
    subject: Subject, candidate: Candidate, *, graph: bytes, metric: float
) -> NetworkFigures:
    return NetworkFigures(metric=metric, size_bytes=len(graph), macs=subject.macs(candidate))


def _done(subject: Subject, candidate: Candidate) -> tuple[Done, ...]:
    return tuple(
        Done(
            group=group.name,
            layers=group.layers,
            action=describe(action),
            fixed_by=group.fixed_by,
        )
        for group, action in zip(subject.network.groups, candidate.actions, strict=True)
    )


def _verdict(goal: Goal, shipped: Shipped, final: FinalFigures, drop: float) -> Verdict:
    return verdict_on(goal, final.measurement, drop=drop, why_dense=shipped.why_dense)


def _recovered(trials: Trials, shipped: Shipped) -> Recovered:
    usual = trials.by_hand().items()
    names = [name for name, trial in usual if trial.candidate == shipped.built.candidate]
    return Recovered(
        loop_steps=trials.evaluator.loop_schedule.steps,
        steps=shipped.steps,
        search_drop=shipped.search_drop,
        usual_setting=names[0] if names else None,
    )


def _precisions(subject: Subject, int8_refused: dict[str, str]) -> Precisions:
    network, rules, fp16 = subject.network, subject.rules, subject.fp16
    masked = space.quantized_masked(network, rules)
    return Precisions(
        base=rules.base_precision,
        kept_float=() if fp16 is None else fp16.in_graph(subject.graph),
        kept_float_why="" if fp16 is None else fp16.reason,
        int8_refused=int8_refused,
        int8_masked_groups=tuple(network.groups[index].name for index in masked),
    )
