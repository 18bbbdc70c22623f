"""End-to-end latency from the rows of a table, without measuring.

The latency of a network is predicted as

    scale * (blocks in the base precision) + int8_scale * (int8 blocks)
        + cast_scale * (changes of precision) + offset,

each a sum of rows less the cost of an empty call of the runtime, the four coefficients fitted to
the end-to-end measurements of the same network so far (docs/measuring.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwloop.compress import space
from hwloop.compress.reachable import row_plan
from hwloop.compress.rows import groups_of, layer_configs
from hwloop.compress.rules import SpaceRules
from hwloop.errors import TargetError
from hwloop.measure.table import EMPTY, LatencyTable
from hwloop.records import KEEP, Layer, LayerConfig, Network

CASTS = ("quantize", "dequantize")
RIDGE = 0.02
ITERATIONS = 20
"""Of the robust fit. RIDGE holds the coefficients near the plain scale while there are few
observations: 0.02 weighs like one network that is 14 % off."""

Sums = tuple[float, float, float]
"""Milliseconds of a network's rows: base blocks, int8 blocks, changes of precision."""


def add_up(rows: Iterable[tuple[LayerConfig, float]], empty_ms: float) -> Sums:
    """Sum (configuration, milliseconds) by kind, each row less an empty call."""
    base = int8 = casts = 0.0
    for config, row_ms in rows:
        cost_ms = max(row_ms - empty_ms, 0.0)
        if config.op in CASTS:
            casts += cost_ms
        elif config.precision == "int8":
            int8 += cost_ms
        else:
            base += cost_ms
    return base, int8, casts


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Coefficients from summed rows to end-to-end milliseconds."""

    scale: float = 1.0
    int8_scale: float = 1.0
    cast_scale: float = 1.0
    offset_ms: float = 0.0
    observations: int = 0

    def __call__(self, sums: Sums) -> float:
        base, int8, casts = sums
        return self.scale * base + self.int8_scale * int8 + self.cast_scale * casts + self.offset_ms


def fit(sums: Sequence[Sums], latencies_ms: Sequence[float]) -> Fit:
    """Robust relative least squares (L1 by reweighting), shrunk towards one common scale.

    Args:
        sums: of every observed network, see :func:`add_up`.
        latencies_ms: their measured end-to-end latencies; the first is the dense network's.
    """
    if not latencies_ms:
        return Fit()
    y = np.asarray(latencies_ms, dtype=float)
    features = np.column_stack([np.asarray(sums, dtype=float).reshape(-1, 3), np.ones(len(y))])
    scale = float(np.median(y / np.maximum(features[:, :3].sum(axis=1), 1e-9)))
    prior = np.array([scale, scale, scale, 0.0])
    # In units of the dense latency, so that shrinking means the same for every coefficient.
    largest = np.maximum(features.max(axis=0), 1e-3 * y[0])
    typical = np.array([features[0, 0], largest[1], largest[2], y[0]]) / y[0]
    relative = features / y[:, None]
    weights = np.ones(len(y))
    solution = prior
    for _ in range(ITERATIONS):
        weighted = relative * weights[:, None]
        left = weighted.T @ weighted + np.diag(RIDGE * typical**2)
        right = weighted.T @ ((1 - relative @ prior) * weights)
        try:
            solution = prior + np.linalg.solve(left, right)
        except np.linalg.LinAlgError:  # rows that no target has: somebody wrote them
            solution = prior
            break
        residual = np.abs(relative @ solution - 1)
        weights = np.sqrt(1 / np.maximum(residual, 0.01) * 0.01)
    return Fit(
        scale=float(solution[0]),
        int8_scale=float(solution[1]),
        cast_scale=float(solution[2]),
        offset_ms=float(solution[3]),
        observations=len(y),
    )


class Predictor:
    """End-to-end latency of any choice for one network, in about 10 microseconds.

    Args:
        table: must hold every row that the plan for ``network`` under ``rules`` has measured, or
            its refusal.

    Raises:
        TargetError: the target refused a block of the dense network.
    """

    def __init__(self, table: LatencyTable, network: Network, rules: SpaceRules) -> None:
        self.network = network
        self.rules = rules
        self.menu = space.menu(rules)
        self.fit = Fit()
        self._empty_ms = table.row_ms(EMPTY)
        self._plan = row_plan(network, rules)
        self._layers = [_LayerSums(self, layer, table) for layer in network.layers]
        self._sums: list[Sums] = []
        self._latencies_ms: list[float] = []

    def sums_ms(self, choices: Sequence[int]) -> Sums:
        """The rows of a choice, summed by kind."""
        base = int8 = casts = 0.0
        for layer in self._layers:
            layer_base, layer_int8, layer_casts = layer(choices)
            base += layer_base
            int8 += layer_int8
            casts += layer_casts
        return base, int8, casts

    def __call__(self, choices: Sequence[int]) -> float:
        """Predicted milliseconds, at least those of an empty call."""
        return max(self.fit(self.sums_ms(choices)), self._empty_ms)

    def observe(self, choices: Sequence[int], latency_ms: float) -> None:
        """Take an end-to-end measurement into the fit; the first one must be the dense network."""
        self._sums.append(self.sums_ms(choices))
        self._latencies_ms.append(latency_ms)
        self.fit = fit(self._sums, self._latencies_ms)


class _LayerSums:
    """The rows of one layer, remembered by the actions of the groups that it depends on."""

    def __init__(self, predictor: Predictor, layer: Layer, table: LatencyTable) -> None:
        self.groups = groups_of(layer)
        self.layer = layer
        self.predictor = predictor
        self.table = table
        keep = (KEEP,) * len(predictor.network.groups)
        self.dense = layer_configs(predictor.network, layer, keep, predictor.rules)[0]
        parts = predictor._plan.parts(self.dense)
        for row, _ in parts:
            reason = table.refusal(row)
            if reason is not None:
                raise TargetError(f"the target does not run layer {layer.name!r}: {reason}")
        self._dense_ms = sum(weight * table.row_ms(row) for row, weight in parts)
        self.known: dict[tuple[int, ...], Sums] = {}

    def __call__(self, choices: Sequence[int]) -> Sums:
        key = tuple([choices[index] for index in self.groups])
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self._add_up(key)
        return found

    def _add_up(self, key: tuple[int, ...]) -> Sums:
        network, rules = self.predictor.network, self.predictor.rules
        actions = [KEEP] * len(network.groups)
        for index, choice in zip(self.groups, key, strict=True):
            actions[index] = self.predictor.menu[choice]
        configs = layer_configs(network, self.layer, actions, rules)
        rows = [(config, self._priced_ms(config)) for config in configs]
        return add_up(rows, self.predictor._empty_ms)

    def _priced_ms(self, config: LayerConfig) -> float:
        parts = self.predictor._plan.parts(config)
        return sum(weight * self._measured_ms(row) for row, weight in parts)

    def _measured_ms(self, row: LayerConfig) -> float:
        """The row, or the dense one's price for a block that the target refused.

        It gains nothing in the prediction, so nothing draws the search there. A candidate that
        has it is built all the same, and fails with its reason or runs: a row is not the network.
        """
        if self.table.refusal(row) is None:
            return self.table.row_ms(row)
        return self.predictor._empty_ms if row.op in CASTS else self._dense_ms


def prediction_error(predicted_ms: Sequence[float], measured_ms: Sequence[float]) -> dict[str, Any]:
    """n, median_abs_pct, within_5pct, within_10pct of predictions made before measuring."""
    if not predicted_ms:
        return {"n": 0, "median_abs_pct": None, "within_5pct": None, "within_10pct": None}
    errors = np.abs(np.asarray(predicted_ms) / np.asarray(measured_ms) - 1)
    return {
        "n": len(errors),
        "median_abs_pct": round(float(np.median(errors)) * 100, 2),
        "within_5pct": round(float(np.mean(errors <= 0.05)), 4),
        "within_10pct": round(float(np.mean(errors <= 0.10)), 4),
    }
