"""``hwloop table`` without a target: look at a table, write it out, read it in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hwloop.errors import UsageError
from hwloop.files import read_file, write_atomically
from hwloop.measure.store import Store, check_can_be_store
from hwloop.measure.table import (
    host_bound,
    row_doubts,
    stored_populations,
    stored_refused_kinds,
    stored_rows,
)
from hwloop.measure.table_exchange import export_rows, import_rows, read_rows
from hwloop.records import LayerConfig

MOST_ROWS_SHOWN = 1_000_000
LARGEST_IMPORT_BYTES = 1 << 30


def show(table: Path) -> list[dict[str, Any]]:
    """One record per population: device, settings, rows, slowest rows, row_doubts, int8_refused."""
    must_exist(table)
    found = []
    with Store(table, read_only=True) as store:
        for name, fingerprint in stored_populations(store).items():
            measured = stored_rows(store, name)
            measured.sort(key=lambda row: -row[1].latency_ms)
            found.append(
                {
                    "population": name,
                    "device": f"{fingerprint.device}, {fingerprint.runtime} "
                    f"{fingerprint.runtime_version}",
                    "settings": ", ".join(f"{key} {value}" for key, value in fingerprint.settings),
                    "rows": len(measured),
                    "slowest": [
                        {
                            "layer": _name(config),
                            "latency_us": row.latency_ms * 1000,
                            "reformats": row.reformats,
                            "host_bound": host_bound(row),
                        }
                        for config, row in measured
                    ],
                    "row_doubts": row_doubts(measured),
                    "int8_refused": stored_refused_kinds(store, name),
                }
            )
    return found


def export(table: Path, file: Path) -> int:
    """Write a table as JSON lines; returns the number of rows."""
    must_exist(table)
    if os.path.exists(file) and not os.path.isfile(
        file
    ):  # a device would be replaced, not written to
        raise UsageError(f"{file} exists and is no file", "name a file to write")
    lines: list[str] = []
    with Store(table, read_only=True) as store:
        count = export_rows(store, lines.append)
    write_atomically(file, "".join(lines).encode())
    return count


def import_(table: Path, file: Path) -> int:
    """Add an exported file to a table; nothing is added, or created, when one line is wrong."""
    data = read_file(
        file,
        what="an exported table",
        limit_bytes=LARGEST_IMPORT_BYTES,
        hint="name a file that `hwloop table export` wrote",
    )
    rows = read_rows(data.splitlines(), file)
    if not rows:
        raise UsageError(f"{file} holds no rows", "name a file that `hwloop table export` wrote")
    check_can_be_store(table)
    with Store(table) as store:
        return import_rows(store, rows)


def in_range(option: str, value: int, low: int, high: int) -> None:
    """Raises UsageError for an option that makes no sense."""
    if not low <= value <= high:
        raise UsageError(f"--{option} {value} is not from {low} to {high}", f"--{option} {low}")


def must_exist(table: Path) -> None:
    """Raises UsageError where there is no table."""
    if not os.path.exists(table):
        raise UsageError(f"no table at {table}", f"hwloop table build --table {table}")


def _name(config: LayerConfig) -> str:
    shape = "x".join(str(size) for size in config.in_shape[1:])
    kernel = f" {config.kernel[0]}x{config.kernel[1]}" if config.op == "conv" else ""
    stride = f" /{config.stride[0]}" if config.stride[0] > 1 else ""
    tail = "+" + "+".join(config.tail) if config.tail else ""
    return f"{config.precision} {config.op}{kernel}{stride} {shape} -> {config.out_channels}{tail}"
