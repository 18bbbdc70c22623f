"""The ``hwloop`` command: parse, call, print, exit code. Nothing is decided here."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from hwloop import __version__
from hwloop.errors import ExitCode, HwloopError, closest
from hwloop.tasks import TASKS

AGENTS = ("dqn", "dqn-vanilla", "random", "greedy", "uniform", "planner", "local")
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)?")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


class _Group(click.Group):
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


class _Duration(click.ParamType[float]):
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


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hwloop")
def main() -> None:
    """Make a trained network fast on real hardware, within an accuracy budget.

    \b
    hwloop optimize                               the bundled demo on this CPU
    hwloop optimize my.py:net --task my.py:Data   your network on your data
    hwloop bench a.onnx b.onnx                    compare two files
    """


@main.command()
@click.argument("model", required=False)
@TASK
@DATA
@TARGET
@click.option("--max-drop", type=float, help="Largest loss of the metric; 0.01 = one point.")
@click.option("--max-latency-ms", type=float, help="Latency that must be reached.")
@click.option("--min-speedup", type=float, help="Speedup over the dense network to be reached.")
@click.option("--run", default="hwloop-run", show_default=True, help="Folder of the run.")
@click.option(
    "--agent", default="dqn", show_default=True, help=f"Who searches: {', '.join(AGENTS)}."
)
@click.option("--reward", default="goal", show_default=True, help="goal, or linear.")
@click.option("--lam", default=0.1, show_default=True, help="Weight of latency in --reward linear.")
@click.option("--evaluations", default=48, show_default=True, help="Candidates to evaluate.")
@click.option("--time-limit", type=_Duration(), help="End the search after 90s, 30m, 2h.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same decisions.")
@click.option("--table", type=click.Path(), help="Latency table to use and extend.")
@click.option("--loop-steps", default=20, show_default=True, help="Distillation per candidate.")
@click.option("--finalists", default=4, show_default=True, help="Candidates to distil fully.")
@click.option("--final-steps", default=300, show_default=True, help="Distillation per finalist.")
@click.option(
    "--dry-run", is_flag=True, help="Check everything and show the plan; measure nothing."
)
@JSON
def optimize(model: str | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Find the fastest network within the goal. Repeating the command resumes it.

    MODEL is package.module:attr or file.py:attr, or either called with literals; without it, the
    task's own network is taken. The default goal is --max-drop 0.01.

    \b
    hwloop optimize
    hwloop optimize --min-speedup 3 --run runs/fast
    hwloop optimize 'torchvision.models:resnet18(weights="DEFAULT")' --task images --data imagenet
    """
    from hwloop import api, plan
    from hwloop.report import notes, summary_rows

    options["time_limit_s"] = options.pop("time_limit")
    if dry_run:
        run = Path(options.pop("run"))
        lines = plan.describe(api.settings_of(model, **options), run=run)
        _print(lines, as_json=as_json, text="\n".join(f"{k}: {v}" for k, v in lines.items()))
        return
    with _progress() as progress:
        report = api.optimize(model, progress=progress, **options)
    folder = Path(options["run"])
    after = [*notes(report), f"report: {folder / 'report.md'}", f"network: {folder / 'best'}"]
    _print(report, as_json=as_json, text=_table(summary_rows(report)) + "\n".join(after))
    sys.exit(ExitCode.MET if report["goal"]["met"] else ExitCode.NOT_MET)


@main.group(cls=_Group)
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
@TABLE
@JSON
def table_build(model: str | None, table_file: Path, as_json: bool, **options: Any) -> None:
    """Measure every row that the network can need; resumable row by row.

    \b
    hwloop table build --table cpu.sqlite
    """
    from hwloop import tables

    with _progress() as progress:
        found = tables.build(model, table=table_file, progress=progress, **options)
    _print(
        found, as_json=as_json, text=f"{found['measured']} rows measured, {found['rows']} in all"
    )


@table.command("check")
@click.argument("model", required=False)
@TASK
@DATA
@TARGET
@TABLE
@click.option("--networks", default=30, show_default=True, help="Random networks to measure.")
@click.option("--seed", default=0, show_default=True, help="Which networks.")
@JSON
def table_check(model: str | None, table_file: Path, as_json: bool, **options: Any) -> None:
    """Predict random candidates from the table, then measure them: the error of the prediction.

    \b
    hwloop table check --table cpu.sqlite --networks 50
    """
    from hwloop import tables

    with _progress() as progress:
        found = tables.check(model, table=table_file, progress=progress, **options)
    error = found["error"]
    text = (
        f"{error['n']} networks outside the fit: median error {error['median_abs_pct']} %, "
        f"{error['within_5pct']:.0%} within 5 %, {error['within_10pct']:.0%} within 10 %, "
        f"Spearman {found['spearman']:.3f}"
    )
    _print(found, as_json=as_json, text=text)


@table.command("show")
@TABLE
@click.option("--rows", default=20, show_default=True, help="Rows to print, slowest first.")
@JSON
def table_show(table_file: Path, rows: int, as_json: bool) -> None:
    """What a table holds: populations, rows, the slowest rows.

    \b
    hwloop table show --table cpu.sqlite --rows 50
    """
    from hwloop import tables

    found = tables.show(table_file)
    parts = []
    for population in found:
        parts.append(f"{population['device']}: {population['rows']} rows, {population['settings']}")
        body = [[row["layer"], f"{row['latency_us']:.1f} us"] for row in population["slowest"]]
        parts.append(_table([["layer", "latency"], *body[:rows]]))
    _print(found, as_json=as_json, text="\n".join(parts) or "the table is empty")


@table.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@TABLE
@JSON
def table_export(file: Path, table_file: Path, as_json: bool) -> None:
    """Write all rows as JSON lines.

    \b
    hwloop table export rows.jsonl --table cpu.sqlite
    """
    from hwloop import tables

    count = tables.export(table_file, file)
    _print({"rows": count, "file": str(file)}, as_json=as_json, text=f"{count} rows in {file}")


@table.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@TABLE
@JSON
def table_import(file: Path, table_file: Path, as_json: bool) -> None:
    """Add the rows of an exported file, each one checked first.

    \b
    hwloop table import rows.jsonl --table cpu.sqlite
    """
    from hwloop import tables

    count = tables.import_(table_file, file)
    _print({"rows": count, "table": str(table_file)}, as_json=as_json, text=f"{count} rows read")


@main.command()
@click.argument("files", nargs=-1, required=True)
@TARGET
@JSON
def bench(files: tuple[str, ...], target: str, as_json: bool) -> None:
    """Compare ONNX files or runs; the first is the baseline. A run alone: best against dense.

    \b
    hwloop bench dense.onnx small.onnx
    hwloop bench hwloop-run
    """
    from hwloop import api

    with _progress() as progress:
        records = api.bench(*files, target=target, progress=progress)
    rows = [["file", "latency (95 %)", "speedup (95 %)", "samples"]]
    for record in records:
        low, high = record["latency_ms_ci95"]
        speed = ""
        if "speedup" in record:
            least, most = record["speedup_ci95"]
            speed = f"{record['speedup']:.3f}x ({least:.3f}-{most:.3f})"
            speed += "" if record["significant"] else " not significant"
        latency = f"{record['latency_ms']:.4f} ms ({low:.4f}-{high:.4f})"
        rows.append([record["file"], latency, speed, str(record.get("samples", ""))])
    doubts = [reason for record in records for reason in record.get("unstable", ())]
    text = _table(rows) + "\n".join(f"unstable: {reason}" for reason in doubts)
    _print(records, as_json=as_json, text=text)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--why", is_flag=True, help="Also what was done to each group, and what failed.")
@JSON
def report(run: Path, why: bool, as_json: bool) -> None:
    """Show the result of a finished run again.

    \b
    hwloop report hwloop-run --why
    """
    from hwloop.files import read_json
    from hwloop.report import notes, summary_rows

    found = read_json(run / "report.json", what="report of a finished run")
    lines = [_table(summary_rows(found)), *notes(found)]
    if why:
        actions = [[item["group"], item["action"]] for item in found["best"]["actions"]]
        lines.append("\n" + _table([["group", "action"], *actions]))
        lines.extend(f"failed: {reason}" for reason in found["search"]["failures"])
    _print(found, as_json=as_json, text="\n".join(lines))


@main.group(cls=_Group)
def target() -> None:
    """Where latency can be measured."""


@target.command("list")
@JSON
def target_list(as_json: bool) -> None:
    """Every target that --target finds by name.

    \b
    hwloop target list
    """
    from hwloop import profile

    found = [profile.load_profile(name) for name in sorted(profile.known_profiles())]
    records = [
        {"name": p.name, "description": p.description, "verified": p.verified} for p in found
    ]
    rows = [[p.name, "yes" if p.verified else "no", p.description] for p in found]
    _print(records, as_json=as_json, text=_table([["target", "verified", "description"], *rows]))


@target.command("show")
@click.argument("name")
@JSON
def target_show(name: str, as_json: bool) -> None:
    """A target's profile as it was read.

    \b
    hwloop target show cpu
    """
    from hwloop.profile import load_profile
    from hwloop.records import to_json

    found = to_json(load_profile(name))
    _print(found, as_json=as_json, text=json.dumps(found, indent=2))


@target.command("check")
@click.argument("name", required=False, default="cpu")
@JSON
def target_check(name: str, as_json: bool) -> None:
    """Start the worker, read the device's state, measure a layer against itself.

    \b
    hwloop target check cpu
    """
    from hwloop import tables

    found = tables.check_target(name)
    lines = [f"{item['state']:4}  {item['what']}" for item in found["checks"]]
    _print(found, as_json=as_json, text="\n".join(lines))
    if any(item["state"] == "fail" for item in found["checks"]):
        sys.exit(ExitCode.TARGET)


# ------------------------------------------------------------------------------- inside


def run() -> NoReturn:
    """The console script: every error that is known becomes a message and its exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        main.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show(sys.stderr)
        sys.exit(ExitCode.USAGE)
    except HwloopError as error:
        click.echo(f"hwloop: {error}", err=True)
        if error.hint:
            click.echo(f"  fix: {error.hint}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nhwloop: stopped; repeat the command to go on", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(ExitCode.MET)


def _terminated(number: int, frame: Any) -> NoReturn:
    click.echo("hwloop: stopped; repeat the command to go on", err=True)
    sys.exit(ExitCode.TERMINATED)


@contextmanager
def _progress() -> Iterator[Any]:
    from hwloop.progress import ConsoleProgress

    progress = ConsoleProgress(sys.stderr)
    try:
        yield progress
    finally:
        progress.close()


def _print(value: Any, *, as_json: bool, text: str) -> None:
    click.echo(json.dumps(value, indent=2) if as_json else text)


def _table(rows: list[list[str]]) -> str:
    """Columns aligned with spaces, a rule under the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([padded[0], rule, *padded[1:]]) + "\n"
