"""Statistics against known values and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from hwloop import stats


def test_the_interval_over_rounds_covers_what_another_session_would_find() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        session = rng.normal(0, stats.BETWEEN_SESSIONS)
        low, high = stats.rounds_ci95(np.exp(session + rng.normal(0, 0.01, 8)))
        covered += low <= 1.0 <= high
    assert 925 <= covered <= 990


@pytest.mark.parametrize("count", [1, 2, 3, 11, 20, 21, 200])
def test_the_quiet_time_of_a_round_is_the_quantile_to_the_last_bit(count: int) -> None:
    values = np.random.default_rng(count).lognormal(size=3 * count)
    found = stats.quiet_times(values.tolist(), [count] * 3)
    expected = [np.quantile(part, stats.QUIET) for part in np.split(values, 3)]
    assert found.tolist() == expected


def test_one_round_alone_is_as_uncertain_as_sessions_differ() -> None:
    low, high = stats.rounds_ci95([2.0])
    assert np.log(high / 2.0) == pytest.approx(1.96 * stats.BETWEEN_SESSIONS, rel=1e-3)
    assert low * high == pytest.approx(4.0)
    assert stats.rounds_sd([2.0]) == 0.0


def test_busy_neighbours_make_the_interval_wide() -> None:
    low, high = stats.rounds_ci95([2.0, 2.0], neighbours=1.0)
    assert low < 2.0 * 0.91
    assert high > 2.0 * 1.1
    quiet_low, quiet_high = stats.rounds_ci95([2.0, 2.0], neighbours=0.02)
    assert quiet_high / quiet_low < 1.017


def test_rounds_that_differ_make_the_interval_wide() -> None:
    low, high = stats.rounds_ci95([1.0, 1.0, 1.0, 1.3])
    assert low < 0.8
    assert high > 1.2


def test_each_round_has_a_quiet_time_of_its_own() -> None:
    rounds = [1.0] * 19 + [3.0] + [2.0] * 39 + [9.0]
    assert stats.quiet_times(rounds, (20, 40)) == pytest.approx([1.0, 2.0])


def test_without_a_note_of_the_rounds_the_samples_are_cut_into_eight() -> None:
    assert [len(part) for part in stats.cut([1.0] * 20, ())] == [3, 3, 3, 3, 2, 2, 2, 2]
    assert [len(part) for part in stats.cut([1.0] * 3, ())] == [1, 1, 1]


def test_what_took_a_tenth_longer_than_quiet_is_disturbed() -> None:
    quiet, disturbed = [1.0, 1.01, 1.09, 1.0] * 10, [1.0, 1.2, 1.0, 1.2] * 10
    assert stats.disturbed_share([quiet], (40,)) == 0.0
    assert stats.disturbed_share([quiet, disturbed], (20, 20)) == 0.25


@pytest.mark.parametrize(
    ("share", "freedom", "quantile"),
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 7, 2.365)]
    + [(0.8, 2, 1.061), (0.8, 5, 0.920), (0.8, 19, 0.861), (0.8, 30, 0.854)],
)
def test_students_t_against_published_quantiles(
    share: float, freedom: int, quantile: float
) -> None:
    assert stats.student_quantile(share, freedom) == pytest.approx(quantile, rel=0.008)


def test_rank_correlations_against_known_values() -> None:
    a, b = [1, 2, 3, 4, 5], [2, 1, 4, 3, 5]
    assert stats.spearman(a, b) == pytest.approx(0.8)
    assert stats.kendall(a, b) == pytest.approx(0.6)
    assert stats.kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / np.sqrt(2 * 3))
    assert stats.kendall([1, 1, 1], [1, 2, 3]) == 0.0
