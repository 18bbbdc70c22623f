"""Numbers in, numbers out: the statistics behind every figure that hwloop prints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

NORMAL_95 = 1.959964
MAD_TO_SIGMA = 1.4826


def median(values: Sequence[float]) -> float:
    return float(np.median(np.asarray(values, dtype=float)))


def mad(values: Sequence[float]) -> float:
    """Median absolute deviation, not scaled."""
    array = np.asarray(values, dtype=float)
    return float(np.median(np.abs(array - np.median(array))))


def cv(values: Sequence[float]) -> float:
    """Robust coefficient of variation: 1.4826 MAD / median."""
    return MAD_TO_SIGMA * mad(values) / median(values)


def median_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Distribution-free 95 % interval of the median, from order statistics.

    The ranks are n/2 -+ 1.96 sqrt(n)/2 (Conover, Practical Nonparametric Statistics, 3rd ed.,
    section 3.2). Fewer than six values cannot support 95 %: the interval is then the range.
    """
    ordered = sorted(values)
    n = len(ordered)
    if n < 6:
        return float(ordered[0]), float(ordered[-1])
    half = NORMAL_95 * math.sqrt(n) / 2
    low = max(math.floor(n / 2 - half), 0)
    high = min(math.ceil(n / 2 + half), n - 1)
    return float(ordered[low]), float(ordered[high])


def halves_differ(values: Sequence[float]) -> float:
    """Relative difference between the medians of the two halves: a sign of drift."""
    middle = len(values) // 2
    first, second = median(values[:middle] or values), median(values[middle:])
    return abs(first - second) / median(values)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman rank correlation; ties get their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b, which corrects for ties; 0 when one side is constant."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    upper = np.triu_indices(len(x), 1)
    dx = np.sign(x[:, None] - x[None, :])[upper]
    dy = np.sign(y[:, None] - y[None, :])[upper]
    scale = math.sqrt(float((dx != 0).sum()) * float((dy != 0).sum()))
    return float((dx * dy).sum() / scale) if scale else 0.0


def bootstrap_ci95(
    values: Sequence[float], *, repeats: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean."""
    array = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = rng.choice(array, (repeats, len(array))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _ranks(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = np.asarray(values, dtype=float)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], dtype=float)
