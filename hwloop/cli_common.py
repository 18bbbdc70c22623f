"""What the commands share: options, progress on stderr, results on stdout."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from hwloop.errors import ExitCode, closest
from hwloop.tasks import TASKS

DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)?")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


class Group(click.Group):
    """Names the closest command, like every other error does."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            raise click.UsageError(
                f"No such command {name!r}: {closest(name, self.list_commands(ctx))}", ctx
            )
        return super().resolve_command(ctx, args)


class Stop:
    """Ctrl-C and SIGTERM, heard for good: a library below may swallow what a handler raises.

    So it is raised again wherever progress is told, until the command has ended.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def install(self) -> None:
        """Hear both signals from now on."""
        self.number = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)

    def check(self) -> None:
        """Raises KeyboardInterrupt or SystemExit when one of them has come."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            raise SystemExit(ExitCode.TERMINATED)

    def _hear(self, number: int, frame: Any) -> None:
        if self.number is None and number != signal.SIGINT:
            click.echo("hwloop: stopped; repeat the command to go on", err=True)
        self.number = number
        self.check()


STOP = Stop()


class Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        match = DURATION.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no duration; write 90s, 30m or 2h", param, ctx)
        return float(match.group(1)) * SECONDS[match.group(2)]


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
TARGET = click.option(
    "--target",
    default="cpu",
    show_default=True,
    envvar="HWLOOP_TARGET",
    metavar="NAME|FILE",
    help="Where latency is measured; hwloop target list.",
)
TASK = click.option(
    "--task",
    default="demo",
    show_default=True,
    metavar="NAME|SPEC",
    help=f"Data and metric: {', '.join(TASKS)}, or package.module:attr, or file.py:attr.",
)
DATA = click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of the data set of a shipped task."
)
TABLE = click.option(
    "--table",
    "table_file",
    type=click.Path(path_type=Path),
    default=Path("hwloop-table.sqlite"),
    show_default=True,
    help="File of the latency table.",
)
HOST = click.option(
    "--host",
    metavar="USER@HOST[:PORT]",
    help="Measure at the other end of ssh, whatever the target's profile says.",
)
SIMULATE = click.option(
    "--simulate",
    is_flag=True,
    help="Rehearse without the board: latencies computed from its datasheet, and said so.",
)


@contextmanager
def console() -> Iterator[Any]:
    """Progress on stderr, ended in order."""
    from hwloop.progress import ConsoleProgress

    progress = ConsoleProgress(sys.stderr, STOP.check)
    try:
        yield progress
    finally:
        progress.close()


def show(value: Any, *, as_json: bool, text: str) -> None:
    """The result of a command on stdout, for scripts or for people."""
    click.echo(json.dumps(value, indent=2) if as_json else text)


def columns(rows: list[list[str]]) -> str:
    """Columns aligned with spaces, a rule under the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([padded[0], rule, *padded[1:]]) + "\n"
