"""A latency table on its way between machines: JSON lines, each one checked when it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hwloop.errors import UsageError
from hwloop.measure.store import Store
from hwloop.measure.table import (
    a_header,
    a_row,
    fields_of,
    population,
    stored_populations,
    stored_rows,
)
from hwloop.parsing import canonical_json, parse_json


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
                if population(*a_header(name, value)) != name:
                    raise ValueError("the population does not belong to its fingerprint")
                checked.append(("population", name, value))
                continue
            if not name:
                raise ValueError("a row before the header line")
            fields = fields_of(value, "key", "config", "measurement")
            key = str(fields.pop("key"))
            config, measurement = a_row(key, fields)
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
