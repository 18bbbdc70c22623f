"""End-to-end latency from the rows of a table, without measuring.

The latency of a network is predicted as

    scale * (blocks in the base precision) + int8_scale * (int8 blocks)
        + cast_scale * (changes of precision) + miss_ms_per_mb * (cold weights) + offset,

each block's row less the cost of an empty call of the runtime, the coefficients fitted to the
end-to-end measurements of the same network so far (docs/measuring.md). Weights are cold that a row
finds in the cache, because it runs alone, and a network does not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwloop.compress import space
from hwloop.compress.reachable import row_plan
from hwloop.compress.rows import groups_of, layer_configs
from hwloop.compress.rules import SpaceRules
from hwloop.errors import TargetError
from hwloop.measure.table import EMPTY, LatencyTable
from hwloop.records import KEEP, Layer, LayerConfig, Network
from hwloop.runtimes.rowkinds import QUANTIZED

CASTS = ("quantize", "dequantize")
RIDGE, MISS_RIDGE = 0.02, 0.002
ITERATIONS = 20
"""Of the robust fit. RIDGE holds the coefficients near the plain scale while there are few
observations: 0.02 weighs like one network that is 14 % off."""

OFFSET_RIDGE = 4.0
"""Holds the offset at an empty call: 1.5 % of the dense latency are so much off as one network that
is 3 % off. What is fitted is never small, and a line through it says little of what is."""

CACHED = 0.7
"""Of the cache: what reads so many bytes finds its weights there from run to run; of twice as many
it finds none."""

FIRST_READ_MB = 0.02
"""Cold weights cost as if they were so many more: nobody fetches their beginning ahead."""

Sums = tuple[float, float, float, float]
"""Of a network's rows: milliseconds of base blocks, of int8 blocks and of changes of precision;
and megabytes of weights that are cold in the network and not in their rows."""

_Parts = tuple[float, float, float, float, float, float]
"""The first three; megabytes that are read, weights of them, and such as are cold in their rows."""


def add_up(
    rows: Iterable[tuple[LayerConfig, float]], empty_ms: float, *, cache_bytes: int | None = None
) -> Sums:
    """Sum (configuration, milliseconds) by kind, each row less an empty call.

    Args:
        cache_bytes: of the target; where nobody knows, no weights are cold.
    """
    return _network_sums([_parts(rows, empty_ms, cache_bytes)], cache_bytes)


def _parts(
    rows: Iterable[tuple[LayerConfig, float]], empty_ms: float, cache_bytes: int | None
) -> _Parts:
    base = int8 = casts = read_mb = weights_mb = cold_mb = 0.0
    for config, row_ms in rows:
        cost_ms = max(row_ms - empty_ms, 0.0)
        if config.op in CASTS:
            casts += cost_ms
        elif config.precision in QUANTIZED:
            int8 += cost_ms
        else:
            base += cost_ms
        own_mb = (config.weight_bytes + config.input_bytes) / 1e6
        read_mb += own_mb
        if config.weight_bytes:
            own_weights_mb = config.weight_bytes / 1e6 + FIRST_READ_MB
            weights_mb += own_weights_mb
            cold_mb += own_weights_mb * _cold_share(own_mb, cache_bytes)
    return base, int8, casts, read_mb, weights_mb, cold_mb


def _network_sums(layers: Iterable[_Parts], cache_bytes: int | None) -> Sums:
    base = int8 = casts = read_mb = weights_mb = cold_mb = 0.0
    for part in layers:
        base += part[0]
        int8 += part[1]
        casts += part[2]
        read_mb += part[3]
        weights_mb += part[4]
        cold_mb += part[5]
    return base, int8, casts, weights_mb * _cold_share(read_mb, cache_bytes) - cold_mb


def _cold_share(read_mb: float, cache_bytes: int | None) -> float:
    """Of weights, where so much is read one after the other, over and over: 0 to 1."""
    if not cache_bytes:
        return 0.0
    return min(max(read_mb * 1e6 / (CACHED * cache_bytes) - 1, 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Coefficients from summed rows to end-to-end milliseconds."""

    scale: float = 1.0
    int8_scale: float = 1.0
    cast_scale: float = 1.0
    offset_ms: float = 0.0
    miss_ms_per_mb: float = 0.0
    observations: int = 0

    def __call__(self, sums: Sums) -> float:
        base, int8, casts, cold_mb = sums
        blocks_ms = self.scale * base + self.int8_scale * int8 + self.cast_scale * casts
        return blocks_ms + self.miss_ms_per_mb * cold_mb + self.offset_ms


def fit(sums: Sequence[Sums], latencies_ms: Sequence[float], *, empty_ms: float = 0.0) -> Fit:
    """Robust relative least squares (L1 by reweighting), shrunk towards one common scale.

    Args:
        sums: of every observed network, see :func:`add_up`.
        latencies_ms: their measured end-to-end latencies; the first is the dense network's.
        empty_ms: of an empty call, which is what a network of no rows takes.
    """
    if not latencies_ms:
        return Fit()
    y = np.asarray(latencies_ms, dtype=float)
    values = np.asarray(sums, dtype=float).reshape(-1, 4)
    features = np.column_stack([values[:, :3], np.ones(len(y)), values[:, 3]])
    blocks_ms = np.maximum(features[:, :3].sum(axis=1), 1e-9)
    scale = float(np.median(np.maximum(y - empty_ms, 0.0) / blocks_ms))
    prior = np.array([scale, scale, scale, empty_ms, 0.0])
    solution = _solved(features, y, prior)
    if solution[4] <= 0:  # a cache that makes nothing slower has no part in it
        solution = np.append(_solved(features[:, :4], y, prior[:4]), 0.0)
    return Fit(
        scale=float(solution[0]),
        int8_scale=float(solution[1]),
        cast_scale=float(solution[2]),
        offset_ms=float(solution[3]),
        miss_ms_per_mb=float(solution[4]),
        observations=len(y),
    )


def _solved(
    features: NDArray[np.float64], y: NDArray[np.float64], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The coefficients of (networks, features)."""
    # In units of the dense latency, so that shrinking means the same for every coefficient.
    largest = np.maximum(features.max(axis=0), 1e-3 * y[0])
    typical = np.array([features[0, 0], *largest[1:3], 1.0, *largest[4:]]) / y[0]
    ridge = np.array([*[RIDGE] * 3, OFFSET_RIDGE, MISS_RIDGE])[: len(prior)] * typical**2
    relative = features / y[:, None]
    weights = np.ones(len(y))
    solution = prior
    for _ in range(ITERATIONS):
        weighted = relative * weights[:, None]
        left = weighted.T @ weighted + np.diag(ridge)
        right = weighted.T @ ((1 - relative @ prior) * weights)
        try:
            solution = prior + np.linalg.solve(left, right)
        except np.linalg.LinAlgError:  # rows that no target has: somebody wrote them
            return prior
        residual = np.abs(relative @ solution - 1)
        weights = np.sqrt(1 / np.maximum(residual, 0.01) * 0.01)
    return solution


class Predictor:
    """End-to-end latency of any choice for one network, in about 10 microseconds.

    Args:
        table: must hold every row that the plan for ``network`` under ``rules`` has measured, or
            its refusal.
        cache_bytes: of the target; None where nobody knows.

    Raises:
        TargetError: the target refused a block of the dense network.
    """

    def __init__(
        self,
        table: LatencyTable,
        network: Network,
        rules: SpaceRules,
        *,
        cache_bytes: int | None = None,
    ) -> None:
        self.network = network
        self.rules = rules
        self.menu = space.menu(rules)
        self.fit = Fit()
        self.cache_bytes = cache_bytes
        self._empty_ms = table.row_ms(EMPTY)
        self._plan = row_plan(network, rules)
        self._layers = [_LayerSums(self, layer, table) for layer in network.layers]
        self.dense_ms = sum(layer.dense_ms for layer in self._layers)
        self._sums: list[Sums] = []
        self._latencies_ms: list[float] = []

    def sums_ms(self, choices: Sequence[int]) -> Sums:
        """The rows of a choice, summed by kind."""
        return _network_sums((layer(choices) for layer in self._layers), self.cache_bytes)

    def __call__(self, choices: Sequence[int]) -> float:
        """Predicted milliseconds, at least those of an empty call."""
        return max(self.fit(self.sums_ms(choices)), self._empty_ms)

    def group_ms(self, choices: Sequence[int], group: int) -> float:
        """Of a prediction, what the layers cost that a group has a say in."""
        layers = (layer(choices) for layer in self._layers if group in layer.groups)
        return self.fit(_network_sums(layers, None)) - self.fit.offset_ms

    def taught(self, measured: Iterable[tuple[Sequence[int], float]]) -> Predictor:
        """The same rows, fitted to these choices and their milliseconds as well.

        The first that any predictor is taught must be the dense network.
        """
        further = list(measured)
        found = copy.copy(self)
        found._sums = self._sums + [self.sums_ms(choices) for choices, _ in further]
        found._latencies_ms = self._latencies_ms + [latency_ms for _, latency_ms in further]
        found.fit = fit(found._sums, found._latencies_ms, empty_ms=self._empty_ms)
        return found


class _LayerSums:
    """The rows of one layer, remembered by the actions of the groups that it depends on."""

    def __init__(self, predictor: Predictor, layer: Layer, table: LatencyTable) -> None:
        self.groups = groups_of(layer)
        self.layer = layer
        self.predictor = predictor
        self.table = table
        keep = (KEEP,) * len(predictor.network.groups)
        dense = layer_configs(predictor.network, layer, keep, predictor.rules)[:1]
        parts = [part for config in dense for part in predictor._plan.parts(config)]
        for row, _ in parts:
            reason = table.refusal(row)
            if reason is not None:
                raise TargetError(f"the target does not run layer {layer.name!r}: {reason}")
        self.dense_ms = sum(weight * table.row_ms(row) for row, weight in parts)
        self.known: dict[tuple[int, ...], _Parts] = {}

    def __call__(self, choices: Sequence[int]) -> _Parts:
        key = tuple([choices[index] for index in self.groups])
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self._add_up(key)
        return found

    def _add_up(self, key: tuple[int, ...]) -> _Parts:
        network, rules = self.predictor.network, self.predictor.rules
        actions = [KEEP] * len(network.groups)
        for index, choice in zip(self.groups, key, strict=True):
            actions[index] = self.predictor.menu[choice]
        configs = layer_configs(network, self.layer, actions, rules)
        rows = [(config, self._priced_ms(config)) for config in configs]
        return _parts(rows, self.predictor._empty_ms, self.predictor.cache_bytes)

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
        if row.op == "resize":
            return self.predictor.dense_ms
        return self.predictor._empty_ms if row.op in CASTS else self.dense_ms


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
