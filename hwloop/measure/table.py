"""The latency table: measured rows by layer configuration, and the model that adds them up.

A row is a fused block measured on the target against a fixed reference row. The latency of a
network is predicted as

    scale * (blocks in the base precision) + int8_scale * (int8 blocks)
        + cast_scale * (changes of precision) + offset,

each a sum of rows less the cost of an empty call of the runtime, the four coefficients fitted to
the end-to-end measurements of the same network so far (docs/measuring.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwloop.compress import space
from hwloop.compress.space import ACTIONS, SpaceRules
from hwloop.errors import TargetError, UsageError
from hwloop.findings import HOST_BOUND, Fingerprint, Measurement, Protocol
from hwloop.measure.store import SCHEMA_VERSION, Store
from hwloop.parsing import ANY_TEXT, a_text, canonical_json, digest, optional, parse_json, shown
from hwloop.records import LayerConfig, Network
from hwloop.runtimes.rowkinds import kind_of

REFERENCE = LayerConfig(
    op="conv",
    in_shape=(1, 32, 14, 14),
    out_channels=32,
    kernel=(3, 3),
    padding=(1, 1),
    tail=("bias", "relu"),
)
"""The block that every row is interleaved with: drift of the machine cancels in the ratio."""

ROWS_VERSION = 2
"""Part of every population: raised when a change of ``rows`` changes what a row means."""

EMPTY = LayerConfig(op="empty", in_shape=(1, 1), out_channels=1)
CASTS = ("quantize", "dequantize")
RIDGE = 0.02
ITERATIONS = 20
"""Of the robust fit. RIDGE holds the coefficients near the plain scale while there are few
observations: 0.02 weighs like one network that is 14 % off."""


class LatencyTable:
    """The rows of one population: same fingerprint, same row protocol, same schema.

    Rows of other populations may live in the same file; they are never read.
    """

    def __init__(self, store: Store, fingerprint: Fingerprint, protocol: Protocol) -> None:
        self.store = store
        self.fingerprint = fingerprint
        self.protocol = protocol
        self.population = population(fingerprint, protocol)
        header = {"fingerprint": fingerprint, "protocol": protocol, "schema": SCHEMA_VERSION}
        store.add("population", self.population, header)
        self._rows = {
            config.key(): measurement.latency_ms
            for config, measurement in stored_rows(store, self.population)
        }
        self._refused = _checked(store, self._refusals, _refusal)
        self._kinds = _checked(store, self._kinds_tried, _tried_kind)
        first = _checked(store, self._first_tries, _row)
        self._disturbed = {key: measurement for key, (_, measurement) in first.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def row_ms(self, config: LayerConfig) -> float:
        """Median latency of a row as measured; KeyError when it is missing or was refused."""
        return self._rows[config.key()]

    def missing(self, configs: Iterable[LayerConfig]) -> list[LayerConfig]:
        """The distinct configurations that were not tried yet, in the order given."""
        vital = {REFERENCE.key(), EMPTY.key()}  # no target refuses them and runs others
        known = self._rows.keys() | (self._refused.keys() - vital)
        return [item for item in dict.fromkeys(configs) if item.key() not in known]

    def refusal(self, config: LayerConfig) -> str | None:
        """Why the target does not run a block, or None where it was not refused."""
        return self._refused.get(config.key())

    def refuse(self, config: LayerConfig, reason: str) -> None:
        """Store that the target does not run a block; it is not tried again."""
        key = config.key()
        self.store.add(self._refusals, key, {"config": config, "reason": reason})
        self._refused.setdefault(key, reason)

    def tried(self, kind: str) -> bool:
        """Whether a row of this kind of int8 row was built, or refused."""
        return kind in self._kinds

    def kind_refusal(self, kind: str) -> str | None:
        """Why the target builds no row of a kind of int8 row; None where it does, or is untried."""
        return self._kinds.get(kind)

    def add_kind(self, config: LayerConfig, reason: str | None) -> None:
        """Store that the target builds rows of this kind (``reason`` None), or why it does not."""
        kind = kind_of(config)
        self.store.add(self._kinds_tried, kind, {"config": config, "reason": reason})
        self._kinds.setdefault(kind, reason)

    def add(self, config: LayerConfig, measurement: Measurement) -> None:
        """Store a measured row; a row that exists already stands."""
        key = config.key()
        self.store.add(self._kind, key, {"config": config, "measurement": measurement})
        self._rows.setdefault(key, measurement.latency_ms)

    def first_try(self, config: LayerConfig) -> Measurement | None:
        """What a row was that something else disturbed; None where it was not, or is untried."""
        return self._disturbed.get(config.key())

    def add_disturbed(self, config: LayerConfig, measurement: Measurement) -> None:
        """Keep a row that something else disturbed: still missing, but the next try is the last."""
        key = config.key()
        value = {"config": config, "measurement": measurement}
        self.store.add(self._first_tries, key, value)
        self._disturbed.setdefault(key, measurement)

    def rows(self) -> list[tuple[LayerConfig, Measurement]]:
        """Every row with its measurement, in key order."""
        return stored_rows(self.store, self.population)

    @property
    def _kind(self) -> str:
        return f"row/{self.population}"

    @property
    def _refusals(self) -> str:
        return f"refused/{self.population}"

    @property
    def _first_tries(self) -> str:
        return f"disturbed/{self.population}"

    @property
    def _kinds_tried(self) -> str:
        return f"int8/{self.population}"


def population(fingerprint: Fingerprint, protocol: Protocol) -> str:
    """What must be equal for two rows to be compared."""
    return digest([fingerprint, protocol, REFERENCE, SCHEMA_VERSION, ROWS_VERSION])


# ------------------------------------------------------------------------------- prediction


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
        table: must hold every row that ``network`` can need under ``rules``, or its refusal.

    Raises:
        TargetError: the target refused a block of the dense network.
    """

    def __init__(self, table: LatencyTable, network: Network, rules: SpaceRules) -> None:
        self.network = network
        self.rules = rules
        self.fit = Fit()
        self._empty_ms = table.row_ms(EMPTY)
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

    def __init__(self, predictor: Predictor, layer: Any, table: LatencyTable) -> None:
        groups = {index for index, _ in layer.in_groups}
        groups |= set() if layer.out_group is None else {layer.out_group}
        self.groups = sorted(groups)
        self.layer = layer
        self.predictor = predictor
        self.table = table
        keep = tuple(ACTIONS[0] for _ in predictor.network.groups)
        self.dense = space.layer_configs(predictor.network, layer, keep, predictor.rules)[0]
        reason = table.refusal(self.dense)
        if reason is not None:
            raise TargetError(f"the target does not run layer {layer.name!r}: {reason}")
        self.known: dict[tuple[int, ...], Sums] = {}

    def __call__(self, choices: Sequence[int]) -> Sums:
        key = tuple([choices[index] for index in self.groups])
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self._add_up(key)
        return found

    def _add_up(self, key: tuple[int, ...]) -> Sums:
        network, rules = self.predictor.network, self.predictor.rules
        actions = [ACTIONS[0]] * len(network.groups)
        for index, choice in zip(self.groups, key, strict=True):
            actions[index] = ACTIONS[choice]
        configs = space.layer_configs(network, self.layer, tuple(actions), rules)
        rows = [(config, self._priced_ms(config)) for config in configs]
        return add_up(rows, self.predictor._empty_ms)

    def _priced_ms(self, config: LayerConfig) -> float:
        """The row, or the dense one's price for a block that the target refused.

        It gains nothing in the prediction, so nothing draws the search there. A candidate that
        has it is built all the same, and fails with its reason or runs: a row is not the network.
        """
        if self.table.refusal(config) is None:
            return self.table.row_ms(config)
        return self.predictor._empty_ms if config.op in CASTS else self.table.row_ms(self.dense)


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


# ------------------------------------------------------------- what a file holds, checked

Row = tuple[LayerConfig, Measurement]


def host_bound(measurement: Measurement) -> bool:
    """Whether the host's launches took longer than the device's work."""
    return any(reason.startswith(HOST_BOUND) for reason in measurement.unstable)


def row_doubts(rows: Iterable[Row]) -> list[str]:
    """What is known to be in rows besides their block, as sentences with counts."""
    measured = [measurement for _, measurement in rows]
    told = [m.reformats for m in measured if m.reformats is not None]
    paying, bound = sum(count > 0 for count in told), sum(map(host_bound, measured))
    disturbed = sum(not m.stable for m in measured) - bound
    found = []
    if paying:
        found.append(f"{paying} of {len(told)} rows pay layout changes of their own")
    if bound:
        found.append(f"{bound} of {len(measured)} rows are {HOST_BOUND}: launching took longest")
    if disturbed > 0:
        found.append(f"{disturbed} of {len(measured)} rows were disturbed, also when taken again")
    return found


def stored_populations(store: Store) -> dict[str, Fingerprint]:
    """The populations of a file. Raises UsageError where one is not what hwloop writes."""
    return _checked(store, "population", lambda name, value: _header(name, value)[0])


def stored_rows(store: Store, name: str) -> list[Row]:
    """The rows of a population, in key order. Raises UsageError where one is damaged."""
    return list(_checked(store, f"row/{name}", _row).values())


def stored_refused_kinds(store: Store, name: str) -> dict[str, str]:
    """Kinds of int8 rows that a population's target refused, each with its reason."""
    tried = _checked(store, f"int8/{name}", _tried_kind)
    return {kind: reason for kind, reason in tried.items() if reason is not None}


def _checked(store: Store, kind: str, read: Callable[[str, Any], Any]) -> dict[str, Any]:
    found = {}
    for key, value in store.all(kind).items():
        try:
            found[key] = read(key, value)
        except ValueError as error:
            raise store.damaged(kind, key, error) from error
    return found


def _header(name: str, value: Any) -> tuple[Fingerprint, Protocol]:
    fields = _fields(value, "fingerprint", "protocol", "schema")
    if fields["schema"] != SCHEMA_VERSION:
        raise ValueError(f"schema {shown(fields['schema'])}; this hwloop reads {SCHEMA_VERSION}")
    if not re.fullmatch("[0-9a-f]{64}", name):
        raise ValueError("the population's name is no SHA-256")
    fingerprint = Fingerprint.from_json(fields["fingerprint"])
    return fingerprint, Protocol.from_json(fields["protocol"])


def _row(key: str, value: Any) -> Row:
    fields = _fields(value, "config", "measurement")
    config = LayerConfig.from_json(fields["config"])
    if config.key() != key:
        raise ValueError("the key does not belong to the configuration")
    return config, Measurement.from_json(fields["measurement"])


def _refusal(key: str, value: Any) -> str:
    fields = _fields(value, "config", "reason")
    if LayerConfig.from_json(fields["config"]).key() != key:
        raise ValueError("the key does not belong to the configuration")
    return str(a_text(10_000, ANY_TEXT)(fields["reason"]))


def _tried_kind(kind: str, value: Any) -> str | None:
    fields = _fields(value, "config", "reason")
    if kind_of(LayerConfig.from_json(fields["config"])) != kind:
        raise ValueError("the kind does not belong to the configuration")
    reason: str | None = optional(a_text(10_000, ANY_TEXT))(fields["reason"])
    return reason


def _fields(value: Any, *names: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"{shown(value)} does not have exactly {', '.join(names)}")
    return value


# ------------------------------------------------------------------------- export and import


def export_rows(store: Store, write: Callable[[str], Any]) -> int:
    """Every population of a file as JSON lines: one header line, then its rows. Returns rows."""
    count = 0
    headers = store.all("population")
    for name in stored_populations(store):
        write(canonical_json({"population": name, **headers[name]}) + "\n")
        for config, measurement in stored_rows(store, name):
            row = {"key": config.key(), "config": config, "measurement": measurement}
            write(canonical_json(row) + "\n")
            count += 1
    return count


def read_rows(lines: Iterable[str | bytes], source: Path) -> list[tuple[str, str, Any]]:
    """(kind, key, value) of exported lines, each one checked: what may be stored.

    Raises:
        UsageError: naming the line that is not JSON, of another schema, altered or impossible.
    """
    name = ""
    checked: list[tuple[str, str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            value = parse_json(line)
            if isinstance(value, dict) and "population" in value:
                name = str(value.pop("population"))
                if population(*_header(name, value)) != name:
                    raise ValueError("the population does not belong to its fingerprint")
                checked.append(("population", name, value))
                continue
            if not name:
                raise ValueError("a row before the header line")
            fields = _fields(value, "key", "config", "measurement")
            key = str(fields.pop("key"))
            config, measurement = _row(key, fields)
            row = {"config": config, "measurement": measurement}
            checked.append((f"row/{name}", key, row))
        except ValueError as error:
            raise UsageError(
                f"{source}, line {number}: {error}",
                "import a file that `hwloop table export` of the same version wrote",
            ) from error
    return checked


def import_rows(store: Store, rows: list[tuple[str, str, Any]]) -> int:
    """Add what :func:`read_rows` found; rows that exist already stand. Returns rows."""
    store.add_all(rows)
    return sum(kind != "population" for kind, _, _ in rows)
