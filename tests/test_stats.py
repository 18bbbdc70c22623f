"""Statistics against known values and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from hwloop import stats


def test_the_interval_of_the_median_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        low, high = stats.median_ci95(list(rng.lognormal(0, 0.5, 31)))
        covered += low <= 1.0 <= high
    assert 930 <= covered <= 985


def test_few_values_give_their_range() -> None:
    assert stats.median_ci95([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_rank_correlations_against_known_values() -> None:
    a, b = [1, 2, 3, 4, 5], [2, 1, 4, 3, 5]
    assert stats.spearman(a, b) == pytest.approx(0.8)
    assert stats.kendall(a, b) == pytest.approx(0.6)
    assert stats.kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / np.sqrt(2 * 3))
    assert stats.kendall([1, 1, 1], [1, 2, 3]) == 0.0


def test_halves_that_drift_apart_are_seen() -> None:
    assert stats.halves_differ([1.0] * 10) == 0.0
    assert stats.halves_differ([1.0] * 5 + [1.2] * 5) == pytest.approx(0.2 / 1.1)


def test_one_outlier_moves_neither_median_nor_scatter() -> None:
    values = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 100.0]
    assert stats.median(values) == 1.0
    assert stats.cv(values) < 0.12
