"""The latency table: blocks measured on a target, by layer configuration.

A row is a fused block measured on the target against a fixed reference row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from hwloop.findings import HOST_BOUND, Fingerprint, Measurement, Protocol
from hwloop.measure.store import SCHEMA_VERSION, Store
from hwloop.parsing import ANY_TEXT, a_text, digest, optional, shown
from hwloop.records import LayerConfig
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

ROWS_VERSION = 4
"""Part of every population: raised when a change of ``rows`` changes what a row means."""

EMPTY = LayerConfig(op="empty", in_shape=(1, 1), out_channels=1)


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
        first = _checked(store, self._first_tries, a_row)
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


# ------------------------------------------------------------- what a file holds, checked

Row = tuple[LayerConfig, Measurement]


def host_bound(measurement: Measurement) -> bool:
    """Whether the host's launches took longer than the device's work."""
    return any(reason.startswith(HOST_BOUND) for reason in measurement.unstable)


def row_doubts(rows: Iterable[Row], *, interpolated: int = 0) -> list[str]:
    """What is known to be in rows besides their block, as sentences with counts.

    Args:
        interpolated: rows that a network can need and that lie between measured ones.
    """
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
        found.append(
            f"{disturbed} of {len(measured)} rows were disturbed, and no calmer time was found"
        )
    if interpolated:
        found.append(f"{interpolated} more rows lie between measured widths and are interpolated")
    return found


def stored_populations(store: Store) -> dict[str, Fingerprint]:
    """The populations of a file. Raises UsageError where one is not what hwloop writes."""
    return _checked(store, "population", lambda name, value: a_header(name, value)[0])


def stored_rows(store: Store, name: str) -> list[Row]:
    """The rows of a population, in key order. Raises UsageError where one is damaged."""
    return list(_checked(store, f"row/{name}", a_row).values())


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


def a_header(name: str, value: Any) -> tuple[Fingerprint, Protocol]:
    """What a population is of. Raises ValueError for anything else."""
    fields = fields_of(value, "fingerprint", "protocol", "schema")
    if fields["schema"] != SCHEMA_VERSION:
        raise ValueError(f"schema {shown(fields['schema'])}; this hwloop reads {SCHEMA_VERSION}")
    if not re.fullmatch("[0-9a-f]{64}", name):
        raise ValueError("the population's name is no SHA-256")
    fingerprint = Fingerprint.from_json(fields["fingerprint"])
    return fingerprint, Protocol.from_json(fields["protocol"])


def a_row(key: str, value: Any) -> Row:
    """A stored row under its key. Raises ValueError for anything else."""
    fields = fields_of(value, "config", "measurement")
    config = LayerConfig.from_json(fields["config"])
    if config.key() != key:
        raise ValueError("the key does not belong to the configuration")
    return config, Measurement.from_json(fields["measurement"])


def _refusal(key: str, value: Any) -> str:
    fields = fields_of(value, "config", "reason")
    if LayerConfig.from_json(fields["config"]).key() != key:
        raise ValueError("the key does not belong to the configuration")
    return str(a_text(10_000, ANY_TEXT)(fields["reason"]))


def _tried_kind(kind: str, value: Any) -> str | None:
    fields = fields_of(value, "config", "reason")
    if kind_of(LayerConfig.from_json(fields["config"])) != kind:
        raise ValueError("the kind does not belong to the configuration")
    reason: str | None = optional(a_text(10_000, ANY_TEXT))(fields["reason"])
    return reason


def fields_of(value: Any, *names: str) -> dict[str, Any]:
    """An object with exactly these names. Raises ValueError for anything else."""
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"{shown(value)} does not have exactly {', '.join(names)}")
    return value
