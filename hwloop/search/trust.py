"""How far the damage table can be trusted: a small regression on what was really evaluated.

Single-action damages do not add up (CLADO, 2023: pairs interact) and recovery training gives part
of them back. So the drop is modelled as a saturating function of the summed damage plus a Gaussian
process: a linear part with one coefficient per group (the ridge that corrects the table) and a part
that decays with the number of differing groups (interactions and single actions).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwloop import stats
from hwloop.search.problem import Array, Choices, Problem, Score

MIN_POINTS = 8
MIN_TAU = 0.3
CAP = 4.0
RELATIVE_BLUR = 0.2
SLOPES = np.geomspace(0.02, 2.0, 25)
GRID = tuple(itertools.product((0.1, 0.3, 1.0), (0.1, 0.3), (0.03, 0.1)))
"""(spread of the groups' coefficients, size of interactions, noise), in units of drop_scale."""


class Trust:
    """Predicts metric drops; immutable once fitted.

    Attributes:
        tau: Kendall's tau of the leave-one-out predictions; 0 with too few points.
        table_tau: Kendall's tau of the bare summed damage.
        slope: drop per summed damage, for small damages.

    Args:
        problem: gives the damage table.
        scores: the evaluated candidates; failed ones are left out.
    """

    def __init__(self, problem: Problem, scores: dict[Choices, Score]) -> None:
        self.problem = problem
        self.tau = self.table_tau = 0.0
        self.slope = 1.0 / problem.allowance
        self._coefficients = np.full(problem.group_count, self.slope)
        self._unit = problem.drop_scale
        known = {
            choices: score.metric_drop
            for choices, score in scores.items()
            if score.metric_drop is not None and math.isfinite(score.metric_drop)
        }
        self.count = len(known)
        if self.count >= MIN_POINTS:
            self._fit(list(known), np.array(list(known.values())) / self._unit)

    @property
    def trusted(self) -> bool:
        """Does the model rank unseen candidates well enough to screen with it?"""
        return self.tau >= MIN_TAU

    @property
    def screens(self) -> bool:
        """May candidates be ranked at all, by the model or by the table alone?"""
        return self.trusted or self.count < MIN_POINTS or self.table_tau >= MIN_TAU

    @property
    def damage(self) -> Array:
        """(G, A) the damage table with each group's coefficient applied: predicted drops."""
        scaled: Array = self.problem.damage * self._coefficients[:, None]
        return scaled

    def drops(self, candidates: Sequence[Choices], *, optimism: float) -> Array:
        """(N,) predicted drops in metric units, ``optimism`` standard deviations to the good.

        Without trust, the prediction is the table times one slope.
        """
        features = self._features(candidates)
        mean = _saturating(features.sum(axis=1), self.slope)
        if self.trusted:
            kernel = self._kernel(features, self._as_array(candidates))
            mean = mean + kernel @ self._weights
            explained = ((kernel @ self._inverse) * kernel).sum(axis=1)
            prior = self._linear**2 * (features**2).sum(axis=1) + self._hamming**2
            mean = mean - optimism * np.sqrt(np.maximum(prior - explained, 0.0))
        return np.asarray(mean * self._unit)

    def _fit(self, candidates: list[Choices], drops: Array) -> None:
        drops = np.clip(drops, -CAP, CAP)
        self._x, self._choices = self._features(candidates), self._as_array(candidates)
        total = self._x.sum(axis=1)
        # Where the goal is decided, drops are small: a large one need not be met as exactly.
        blur = RELATIVE_BLUR * np.abs(drops)
        weight = 1 / (RELATIVE_BLUR + np.abs(drops))
        errors = [(weight * np.abs(drops - _saturating(total, s))).sum() for s in SLOPES]
        self.slope = float(SLOPES[int(np.argmin(errors))])
        self.table_tau = stats.kendall(total.tolist(), drops.tolist())
        residual = drops - _saturating(total, self.slope)
        best = np.inf
        for linear, hamming, noise in GRID:
            self._linear, self._hamming = linear, hamming
            kernel = self._kernel(self._x, self._choices)
            inverse = np.linalg.inv(kernel + np.diag(noise**2 + blur**2))
            # Leave-one-out residuals in closed form: Rasmussen & Williams 2006, eq. 5.12.
            left_out = (inverse @ residual) / np.diag(inverse)
            error = float((weight * np.abs(left_out)).sum())
            if error < best:
                best, chosen = error, (linear, hamming, inverse, drops - left_out)
        self._linear, self._hamming, self._inverse, predicted = chosen
        self._weights = self._inverse @ residual
        self.tau = stats.kendall(predicted.tolist(), drops.tolist())
        shift = self._linear**2 * (self._x.T @ self._weights)
        self._coefficients = np.clip(self.slope + shift, self.slope / 5, self.slope * 5)

    def _features(self, candidates: Sequence[Choices]) -> Array:
        """(N, G) each group's damage in units of drop_scale."""
        rows = self._as_array(candidates)
        picked: Array = self.problem.damage[np.arange(self.problem.group_count), rows]
        return picked / self._unit

    def _kernel(self, features: Array, choices: NDArray[np.int64]) -> Array:
        """(N, points) covariance of candidates with the fitted points."""
        differing = (choices[:, None, :] != self._choices[None, :, :]).mean(axis=2)
        similar: Array = self._hamming**2 * np.exp(-4 * differing)
        return self._linear**2 * (features @ self._x.T) + similar

    @staticmethod
    def _as_array(candidates: Sequence[Choices]) -> NDArray[np.int64]:
        return np.asarray(candidates, dtype=np.int64)


def _saturating(damage: Array, slope: float) -> Array:
    """Drop over damage: the given slope at 0, levelling off at the cap (accuracy has a floor)."""
    return np.asarray(CAP * -np.expm1(-slope * np.maximum(damage, 0.0) / CAP))
