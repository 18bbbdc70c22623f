"""What the commands share: options, progress on stderr, results on stdout."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hwloop.errors import EnvironmentProblem, ExitCode, closest
from hwloop.parsing import printable
from hwloop.tasks import TASKS

DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)?")
TARGET_VARIABLE = "HWLOOP_TARGET"
HERE = str(Path(__file__).resolve().parents[1]) + os.sep
LONGEST_MESSAGE = 500
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


@dataclass
class Asked:
    """What was asked for wherever on the command line; the context's object."""

    debug: bool = False


def _note_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and isinstance(ctx.obj, Asked):
        ctx.obj.debug = True


DEBUG = click.Option(
    ["--debug"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_note_debug,
    help="Show the traceback of an error.",
)


class Carried(Exception):
    """Carries, as its cause, an error that click would take for a sign of its own.

    To click a broken pipe is standard output's and an end of file is Ctrl-D; here standard output
    is looked after by :func:`show` and nothing is read, so both are errors like any other.
    """


class Command(click.Command):
    """Takes ``--debug``, and shows the ``\\b`` block of its docstring last, as its examples."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(DEBUG)
        text, _, self.examples = inspect.cleandoc(self.help or "").partition("\b\n")
        self.help = text.strip()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            formatter.write_text(f"\b\n{self.examples}")

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, EOFError) as error:
            raise Carried from error


class Group(Command, click.Group):
    """Names the closest command, like every other error does."""

    command_class = Command

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

    So it is raised again wherever progress is told, until the command has ended. Both are raised
    as KeyboardInterrupt: a SystemExit would read as the user's code having ended the program.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def install(self) -> None:
        """Hear both signals from now on."""
        self.number = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)

    def check(self) -> None:
        """Raises KeyboardInterrupt when one of them has come."""
        if self.number is not None:
            raise KeyboardInterrupt

    @property
    def code(self) -> ExitCode:
        """What the command returns for the one that came last; for a prompt left, as Ctrl-C."""
        terminated = self.number == signal.SIGTERM
        return ExitCode.TERMINATED if terminated else ExitCode.INTERRUPTED

    def _hear(self, number: int, frame: Any) -> None:
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


class MaxDrop(click.ParamType[Any]):
    """A number, or ``none`` for no limit at all."""

    name = "number|none"

    def convert(self, value: Any, param: Any, ctx: Any) -> float | None:
        if value is None or str(value).lower() == "none":
            return None
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is no number; write 0.01 for one point, or none", param, ctx)


class TargetName(click.ParamType[str]):
    """A name or a path: where several may be given, the environment variable is still one."""

    name = "target"

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
TARGET_OPTION: dict[str, Any] = {
    "default": "cpu",
    "show_default": True,
    "envvar": TARGET_VARIABLE,
    "show_envvar": True,
    "metavar": "NAME|FILE",
}
TARGET_HELP = "Where latency is measured; hwloop target list."
TARGET = click.option("--target", help=TARGET_HELP, **TARGET_OPTION)
TARGETS = click.option(
    "--target",
    type=TargetName(),
    multiple=True,
    help=f"{TARGET_HELP} May be repeated: every file on each.",
    **{**TARGET_OPTION, "default": ("cpu",)},
)
TASK = click.option(
    "--task",
    metavar="NAME|SPEC",
    help=f"Data and metric: {', '.join(TASKS)}, or package.module:attr, or file.py:attr. "
    "Without a MODEL: demo.",
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
    from hwloop.measure.progress import ConsoleProgress

    progress = ConsoleProgress(sys.stderr, STOP.check)
    try:
        yield progress
    finally:
        progress.close()


def show(value: Any, *, as_json: bool, text: str) -> None:
    """The result of a command on stdout, for scripts or for people."""
    try:
        click.echo(json.dumps(value, indent=2) if as_json else printable(text))
    except BrokenPipeError:
        # The reader has gone, e.g. `| head -1` has what it wanted. What was done is done: the exit
        # code stays the command's own, and Python's last flush must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def missing(error: ModuleNotFoundError) -> EnvironmentProblem | None:
    """What to say where a needed package is not installed; None where the module is none of one."""
    from hwloop.measure.doctor.facts import NEEDED

    module = (error.name or "").partition(".")[0]
    names = [name for name in NEEDED if name.replace("-", "_") == module]
    hint = "hwloop doctor   says what else is missing, and how to install it"
    return EnvironmentProblem(f"{names[0]} is not installed", hint) if names else None


def say_internal(error: BaseException) -> None:
    """One line about an error that nobody foresaw, and what to do with it, on stderr."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(HERE)]
    innermost = (ours or frames)[-1]
    text = " ".join(str(error).split())[:LONGEST_MESSAGE]
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = f"{innermost.filename}:{innermost.lineno}"
    click.echo(f"hwloop: internal error: {what} (at {place})", err=True)
    click.echo("  fix: repeat with --debug and report it", err=True)


def columns(rows: list[list[str]]) -> str:
    """Columns aligned with spaces, a rule under the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([padded[0], rule, *padded[1:]]) + "\n"
