"""``hwloop table``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hwloop.cli.common import DATA, HOST, JSON, TABLE, TARGET, TASK, Group, columns, console, show


@click.group(cls=Group)
def table() -> None:
    """Build, look at and exchange latency tables.

    \b
    hwloop table build --table cpu.sqlite
    hwloop table check --table cpu.sqlite
    """


@table.command("build")
@click.argument("model", required=False)
@TASK
@DATA
@TARGET
@HOST
@TABLE
@JSON
def table_build(model: str | None, table_file: Path, as_json: bool, **options: Any) -> None:
    """Measure every row that the network can need; resumable row by row.

    \b
    hwloop table build --table cpu.sqlite
    hwloop table build my.py:net --task my.py:Data --table cpu.sqlite
    """
    from hwloop.run import table_check as tables

    with console() as progress:
        found = tables.build(model, table=table_file, progress=progress, **options)
    text = f"{found['measured']} rows measured, {found['rows']} in all"
    show(found, as_json=as_json, text="\n".join([text, *found["row_doubts"]]))


@table.command("check")
@click.argument("model", required=False)
@TASK
@DATA
@TARGET
@HOST
@TABLE
@click.option("--networks", default=30, show_default=True, help="Random networks to measure.")
@click.option("--seed", default=0, show_default=True, help="Which networks.")
@JSON
def table_check(model: str | None, table_file: Path, as_json: bool, **options: Any) -> None:
    """Predict random candidates from the table, then measure them: the error of the prediction.

    \b
    hwloop table check --table cpu.sqlite
    hwloop table check my.py:net --task my.py:Data --table cpu.sqlite --networks 10
    """
    from hwloop.run import table_check as tables

    with console() as progress:
        found = tables.check(model, table=table_file, progress=progress, **options)
    error = found["error"]
    text = (
        f"{error['n']} networks outside the fit: median error {error['median_abs_pct']} %, "
        f"{error['within_5pct']:.0%} within 5 %, {error['within_10pct']:.0%} within 10 %, "
        f"Spearman {found['spearman']:.3f}"
    )
    show(found, as_json=as_json, text="\n".join([text, *found["row_doubts"]]))


@table.command("show")
@TABLE
@click.option("--rows", default=20, show_default=True, help="Rows to print, slowest first.")
@JSON
def table_show(table_file: Path, rows: int, as_json: bool) -> None:
    """What a table holds: populations, rows, the slowest rows.

    \b
    hwloop table show --table cpu.sqlite
    hwloop table show --table cpu.sqlite --rows 50
    """
    from hwloop.run import table_files as tables

    tables.in_range("rows", rows, 1, tables.MOST_ROWS_SHOWN)
    found = tables.show(table_file)
    parts = []
    for population in found:
        parts.append(f"{population['device']}: {population['rows']} rows, {population['settings']}")
        body = [_row(row) for row in population["slowest"][:rows]]
        parts.append(columns([["layer", "latency", ""], *body]))
        parts.extend(population["row_doubts"])
        refused = population["int8_refused"]
        parts.extend(f"INT8 refused: {kind}: {reason}" for kind, reason in refused.items())
    show(found, as_json=as_json, text="\n".join(parts) or "the table is empty")


def _row(row: dict[str, Any]) -> list[str]:
    notes = ["host-bound"] if row["host_bound"] else []
    if row["reformats"]:
        notes.append(f"layout changes: {row['reformats']}")
    return [row["layer"], f"{row['latency_us']:.1f} us", ", ".join(notes)]


@table.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@TABLE
@JSON
def table_export(file: Path, table_file: Path, as_json: bool) -> None:
    """Write all rows as JSON lines.

    \b
    hwloop table export mine.jsonl
    hwloop table export mine.jsonl --table cpu.sqlite
    """
    from hwloop.run import table_files as tables

    count = tables.export(table_file, file)
    show({"rows": count, "file": str(file)}, as_json=as_json, text=f"{count} rows in {file}")


@table.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@TABLE
@JSON
def table_import(file: Path, table_file: Path, as_json: bool) -> None:
    """Add the rows of an exported file, each one checked first.

    \b
    hwloop table import rows.jsonl
    hwloop table import rows.jsonl --table cpu.sqlite
    """
    from hwloop.run import table_files as tables

    count = tables.import_(table_file, file)
    show({"rows": count, "table": str(table_file)}, as_json=as_json, text=f"{count} rows read")
