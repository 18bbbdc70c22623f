"""What an evaluated candidate is worth to the search: one number in [-3, 2].

The reward is terminal: it is given once, when a candidate has been evaluated, and no step before
that earns anything. Episodes are short and of fixed length, so the discount is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

FAILED_REWARD = -3.0
BEST_REWARD = 2.0
LATENCY_STEEPNESS = 10.0
TOLERANCE = 0.1


class Scored(Protocol):
    """An evaluated candidate: a metric drop and a latency, or the reason why it has none."""

    @property
    def metric_drop(self) -> float | None: ...
    @property
    def latency_ms(self) -> float | None: ...
    @property
    def failed(self) -> str | None: ...


class Limits(Protocol):
    """What the user asked for, and the dense network's latency."""

    @property
    def baseline_ms(self) -> float: ...
    @property
    def budget_ms(self) -> float | None: ...
    @property
    def max_drop(self) -> float | None: ...
    @property
    def drop_scale(self) -> float: ...


def goal_reward(metric_drop: float, latency_ms: float, *, limits: Limits) -> float:
    """Reward of a candidate under the user's limits, not yet clipped.

    With a limit on the drop, the faster of two candidates within it is the better one::

        excess = max(0, drop - max_drop)
        speed  = log2(baseline_ms / latency_ms) / 2
        R      = speed * max(0, 1 - excess / (0.1 drop_scale)) - excess / drop_scale

    The bonus for speed fades out within a tolerance of a tenth of ``drop_scale``: past it a
    candidate earns less than the dense network (R = 0), whatever its speed, and so collapse
    cannot be bought. A slowdown is never forgiven. With a budget alone, only accuracy counts
    (compare HAQ, Wang et al. 2019, where the budget is enforced by the action space too)::

        R = -drop / drop_scale - 10 ln(latency_ms / budget_ms)   (last term only above budget)

    The budget's term is one-sided: being faster than asked is never punished. With both limits
    it is added to the first formula.

    Args:
        metric_drop: loss of the metric in its own unit, positive = worse.
        latency_ms: end-to-end latency, above 0.
        limits: at least one of ``max_drop`` and ``budget_ms`` is set.

    Raises:
        ValueError: neither limit is set.
    """
    if limits.max_drop is None and limits.budget_ms is None:
        raise ValueError("the goal reward needs a limit on the drop, the latency or both")
    if limits.max_drop is None:
        value = -metric_drop / limits.drop_scale
    else:
        excess = max(0.0, metric_drop - limits.max_drop) / limits.drop_scale
        speed = math.log2(limits.baseline_ms / latency_ms) / 2
        if speed > 0:
            speed *= max(0.0, 1 - excess / TOLERANCE)
        value = speed - excess
    if limits.budget_ms is not None and latency_ms > limits.budget_ms:
        value -= LATENCY_STEEPNESS * math.log(latency_ms / limits.budget_ms)
    return value


def linear_reward(
    metric_drop: float, latency_ratio: float, *, lam: float, drop_scale: float
) -> float:
    """Accuracy minus lambda times latency, over lambda; 0 for the dense network, 1 at most::

        R = (lam - drop - lam * latency / baseline) / lam

    So it does not depend on the metric's unit, as its bounds do not. Where the latency is worth
    nothing, the drop over ``drop_scale`` is all.

    Args:
        metric_drop: loss of the metric in its own unit, positive = worse.
        latency_ratio: latency over the baseline's latency, so the unit of time is irrelevant.
        lam: what the whole baseline latency is worth in units of the metric.
    """
    if lam == 0:
        return -metric_drop / drop_scale
    return 1 - metric_drop / lam - latency_ratio


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Turns a score into a reward.

    Attributes:
        kind: goal (constraints, :func:`goal_reward`) or linear (:func:`linear_reward`).
        lam: weight of the latency in the linear reward; at least 0.
    """

    kind: str = "goal"
    lam: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in ("goal", "linear"):
            raise ValueError(f"unknown reward {self.kind!r}: goal or linear")
        if not self.lam >= 0:
            raise ValueError(f"lam must not be negative: {self.lam}")

    def __call__(self, score: Scored, limits: Limits) -> float:
        """Reward in [-3, 2]; a failed or non-finite score is worth :data:`FAILED_REWARD`."""
        if score.failed is not None or score.metric_drop is None or score.latency_ms is None:
            return FAILED_REWARD
        return self.of(score.metric_drop, score.latency_ms, limits=limits)

    def of(self, metric_drop: float, latency_ms: float, *, limits: Limits) -> float:
        """Reward in [-3, 2] of bare numbers; see :meth:`__call__`."""
        if not (math.isfinite(metric_drop) and math.isfinite(latency_ms) and latency_ms > 0):
            return FAILED_REWARD
        value = self.unclipped(metric_drop, latency_ms, limits=limits)
        return min(max(value, FAILED_REWARD), BEST_REWARD)

    def unclipped(self, metric_drop: float, latency_ms: float, *, limits: Limits) -> float:
        """The same without bounds: it still ranks candidates whose rewards are both -3."""
        if self.kind == "linear":
            ratio = latency_ms / limits.baseline_ms
            scale = limits.drop_scale
            return linear_reward(metric_drop, ratio, lam=self.lam, drop_scale=scale)
        return goal_reward(metric_drop, latency_ms, limits=limits)
