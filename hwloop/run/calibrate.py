"""The prediction that a search plans with: rows, and a few whole networks to fit their sum to."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hwloop.compress import space
from hwloop.compress.recover import NO_RECOVERY
from hwloop.compress.subject import Subject
from hwloop.errors import CandidateError
from hwloop.measure import paired as measure
from hwloop.measure.predict import Predictor
from hwloop.measure.progress import Progress
from hwloop.measure.table import LatencyTable
from hwloop.measure.trial import Trial
from hwloop.records import Candidate
from hwloop.run.evaluate import Evaluator

CALIBRATION_NETWORKS = 12


def fitted_predictor(
    evaluator: Evaluator, table: LatencyTable, progress: Progress, *, seed: int
) -> Predictor:
    """Measure missing rows and a few random networks end to end, and fit the prediction.

    Of what the search measures later, each network is predicted before it is in the fit: those
    tell its error (:func:`taught`).
    """
    subject = evaluator.subject
    rows = subject.reachable()
    progress.stage("latency table")
    with evaluator.clock("measure"):
        measure.build_rows(
            evaluator.session,
            table,
            rows,
            runtime=subject.runtime,
            progress=progress.advance,
        )
    predictor = Predictor(
        table, subject.network, subject.rules, cache_bytes=evaluator.session.cache_bytes
    )
    dense = subject.choices(subject.dense_candidate)
    measured = [(dense, evaluator.baseline.latency_ms)]
    progress.stage("calibration networks")
    for number, candidate in enumerate(_calibration_candidates(subject, seed)):
        progress.advance(number, CALIBRATION_NETWORKS)
        measurement = evaluator.latencies.known(candidate)
        if measurement is None:
            try:
                # Latency does not depend on the values of the weights: no recovery is needed.
                built = evaluator.builder.build(candidate, NO_RECOVERY)
                with evaluator.session.holding(built.model):
                    measurement = evaluator.latencies.of(built)
            except CandidateError:
                continue
        measured.append((subject.choices(candidate), measurement.latency_ms))
    return predictor.taught(measured)


def taught(predictor: Predictor, trials: Iterable[Trial], subject: Subject) -> Predictor:
    """The prediction, fitted to what a search has measured as well.

    Random networks are of middling speed, and of both precisions in turns. What a search finds is
    far faster, and where it is alike the fit is soon right. For the same trials it is the same.
    """
    return predictor.taught(
        (subject.choices(trial.candidate), trial.outcome.latency_ms)
        for trial in trials
        if trial.outcome is not None
    )


def _calibration_candidates(subject: Subject, seed: int) -> list[Candidate]:
    """Random candidates whose share of int8 groups covers the range evenly."""
    rng = np.random.default_rng([seed, 7])
    return [
        space.random_candidate(
            subject.network,
            subject.rules,
            rng,
            int8_share=number / (CALIBRATION_NETWORKS - 1),
        )
        for number in range(CALIBRATION_NETWORKS)
    ]
