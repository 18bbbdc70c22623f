"""Numbers in, numbers out: the statistics behind every figure that hwloop prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

QUIET = 0.05
"""The quantile of a round's samples that stands for the undisturbed machine, as on the device."""

DISTURBED = 1.1
BETWEEN_SESSIONS = 0.004
"""Standard deviation, relative, of a ratio between processes and minutes on a quiet machine, beyond
what its rounds show of it (benchmarks/interference.py, ``between_sessions_pct``)."""

NEIGHBOURS = 0.1
"""How far busy neighbours may move a ratio, relative, where all other cores are busy and share the
memory: 95 of 100 times, of networks that do not live from memory (benchmarks/interference.py)."""

ROUNDS_WITHOUT_NOTE = 8
NORMAL_95 = 1.959964
MEDIAN_BY_MEAN = 1.2533  # standard errors of the two, for normal values


Values = Sequence[float] | NDArray[np.float64]


def median(values: Values) -> float:
    return float(np.median(np.asarray(values, dtype=float)))


def cut(values: Sequence[float], rounds: Sequence[int]) -> list[NDArray[np.float64]]:
    """The samples of each round. Without a note of the rounds, up to eight equal parts."""
    array = np.asarray(values, dtype=float)
    if not rounds:
        return np.array_split(array, min(ROUNDS_WITHOUT_NOTE, len(array)))
    return np.split(array, np.cumsum(rounds)[:-1])


def quiet_times(values: Sequence[float], rounds: Sequence[int]) -> NDArray[np.float64]:
    """The quiet quantile of each round's samples."""
    return np.asarray([_quiet(part) for part in cut(values, rounds)])


def _quiet(part: NDArray[np.float64]) -> float:
    """``np.quantile(part, QUIET)``, which takes 50 us: a search asks for thousands."""
    ordered = np.sort(part)
    place = (len(ordered) - 1) * QUIET
    below = int(place)
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    share = place - below
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


def disturbed_share(series: Sequence[Sequence[float]], rounds: Sequence[int]) -> float:
    """Share of samples beyond DISTURBED times the quiet time of their round, over all series."""
    parts = [part for values in series for part in cut(values, rounds)]
    beyond = sum(int((part > DISTURBED * _quiet(part)).sum()) for part in parts)
    return beyond / sum(map(len, parts))


def rounds_sd(values: Values) -> float:
    """Relative standard deviation between rounds; 0 where there is only one."""
    logs = np.log(np.asarray(values, dtype=float))
    return float(logs.std(ddof=1)) if len(logs) > 1 else 0.0


def rounds_ci95(values: Values, *, neighbours: float = 0.0) -> tuple[float, float]:
    """95 % interval of the median over rounds, of what another session would find as well.

    Student's t on the logarithms, rounds being the independent units; what the rounds of one
    session cannot show is added as variances add: the spread between sessions, and the neighbours.

    Args:
        neighbours: share of the other cores' time that others used, 0 to 1.
    """
    count = len(values)
    within = 0.0
    if count > 1:
        error = MEDIAN_BY_MEAN * rounds_sd(values) / math.sqrt(count)
        within = student_quantile(0.975, count - 1) * error
    beyond = math.hypot(NORMAL_95 * BETWEEN_SESSIONS, NEIGHBOURS * neighbours)
    factor = math.exp(math.hypot(within, beyond))
    middle = median(values)
    return middle / factor, middle * factor


def student_quantile(share: float, freedom: int) -> float:
    """A quantile of Student's t: exact for 1 and 2, else Abramowitz and Stegun, 26.7.5."""
    if freedom == 1:
        return math.tan(math.pi * (share - 0.5))
    if freedom == 2:
        return (2 * share - 1) / math.sqrt(2 * share * (1 - share))
    z = NormalDist().inv_cdf(share)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


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


def _ranks(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = np.asarray(values, dtype=float)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], dtype=float)
