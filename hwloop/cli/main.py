"""The ``hwloop`` command: parse, call, print, exit code. Nothing is decided here."""

from __future__ import annotations

import io
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import click

from hwloop import __version__
from hwloop.cli.common import (
    DATA,
    HOST,
    JSON,
    SIMULATE,
    STOP,
    TARGET,
    TARGETS,
    TASK,
    Asked,
    Carried,
    Duration,
    Group,
    MaxDrop,
    columns,
    console,
    missing,
    say_internal,
    show,
)
from hwloop.cli.table import table
from hwloop.cli.target import doctor, target
from hwloop.errors import ExitCode, HwloopError
from hwloop.parsing import printable
from hwloop.run.beside import disturbance_lines
from hwloop.search.methods import METHODS


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hwloop")
def main() -> None:
    """Make a trained network fast on real hardware, within an accuracy budget.

    \b
    hwloop optimize                               # the bundled demo on this CPU
    hwloop optimize my.py:net --task my.py:Data   # your network on your data
    hwloop bench a.onnx b.onnx                    # compare two files
    hwloop doctor                                 # what is missing here
    """


@main.command()
@click.argument("model", required=False)
@TASK
@DATA
@TARGET
@HOST
@SIMULATE
@click.option(
    "--max-drop",
    type=MaxDrop(),
    default="0.01",
    show_default=True,
    help="Largest loss of the metric; 0.01 = one point. none lifts it.",
)
@click.option("--max-latency-ms", type=float, help="Latency that must be reached, besides.")
@click.option("--min-speedup", type=float, help="Speedup to be reached, besides.")
@click.option("--run", default="hwloop-run", show_default=True, help="Folder of the run.")
@click.option(
    "--agent", default="dqn", show_default=True, help=f"Who searches: {', '.join(METHODS)}."
)
@click.option("--reward", default="goal", show_default=True, help="goal, or linear.")
@click.option("--lam", type=float, help="Weight of latency in --reward linear; 0.1 unless given.")
@click.option("--evaluations", default=48, show_default=True, help="Candidates to evaluate.")
@click.option("--time-limit", type=Duration(), help="End the search after 90s, 30m, 2h.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same decisions.")
@click.option("--table", type=click.Path(), help="Latency table to use and extend.")
@click.option(
    "--loop-steps",
    type=int,
    help="Distillation per candidate; unless given 0, and 40 without batch norms.",
)
@click.option(
    "--finalists", default=8, show_default=True, help="Full distillations after the search."
)
@click.option(
    "--final-steps",
    default=600,
    show_default=True,
    help="Distillation per finalist: gradient steps, of 64 samples each.",
)
@click.option(
    "--finish", type=Duration(), help="Distill finalists for 10m instead, while it gains."
)
@click.option(
    "--dry-run", is_flag=True, help="Check everything and show the plan; measure nothing."
)
@JSON
def optimize(model: str | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Find the fastest network within the goal. Repeating the command resumes it.

    MODEL is package.module:attr or file.py:attr, or either called with literals; without it, the
    task's own network is taken. The default goal is --max-drop 0.01.

    \b
    hwloop optimize --min-speedup 3 --run runs/fast
    hwloop optimize my.py:net --task my.py:Data --max-drop 0.005 --dry-run
    hwloop optimize 'torchvision.models:resnet18(weights="DEFAULT")' --task images --data imagenet
    hwloop optimize --target jetson-orin --simulate
    """
    from hwloop import api
    from hwloop.report.text import notes, summary_rows
    from hwloop.run import dry_run as plan

    options["time_limit_s"] = options.pop("time_limit")
    options["finish_s"] = options.pop("finish")
    if dry_run:
        lines = plan.describe(model, **options)
        show(lines, as_json=as_json, text="\n".join(f"{k}: {v}" for k, v in lines.items()))
        return
    with console() as progress:
        report = api.optimize(model, progress=progress, **options)
    folder = Path(options["run"])
    after = [*notes(report), f"report: {folder / 'report.md'}", f"network: {folder / 'best'}"]
    show(report, as_json=as_json, text=columns(summary_rows(report)) + "\n".join(after))
    sys.exit(ExitCode.MET if report["goal"]["met"] else ExitCode.NOT_MET)


@main.command()
@click.argument("files", nargs=-1, required=True)
@TARGETS
@HOST
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT:1x3x224x224",
    help="Shape of an input with dynamic dimensions; may be repeated.",
)
@click.option(
    "--cross-check",
    type=click.Choice(["trtexec"]),
    help="Also time the engines with NVIDIA's own tool.",
)
@JSON
def bench(files: tuple[str, ...], cross_check: str | None, as_json: bool, **options: Any) -> None:
    """Compare ONNX files or runs; the first is the baseline. A run alone: best against dense.

    On several targets, every file is measured on each, and the baseline is the first file on the
    first target. Targets take turns of one round; a ratio is that of two quiet times of a round.

    \b
    hwloop bench a.onnx b.onnx
    hwloop bench a.onnx --target cpu --target openvino
    hwloop bench hwloop-run
    hwloop bench any-size.onnx --shape input:1x3x224x224
    hwloop bench hwloop-run --target cuda --cross-check trtexec
    """
    from hwloop import api

    with console() as progress:
        records = api.bench(
            *files, cross_check=cross_check is not None, progress=progress, **options
        )
    lines = [columns(_rows(records))]
    lines += [f"unstable: {doubt}" for found in records for doubt in found.get("unstable", ())]
    for found in records:
        lines += disturbance_lines(found.get("disturbance", {}))
    lines += [_second_opinion(found) for found in records if "cross_check" in found]
    show(records, as_json=as_json, text="\n".join(lines))


def _rows(records: list[dict[str, Any]]) -> list[list[str]]:
    """A header and a row for each; with their targets where there are several."""
    places = [name for name in ("target", "runtime") if name in records[0]]
    rows = [["file", *places, "latency (95 %)", "speedup (95 %)", "samples"]]
    for record in records:
        low, high = record["latency_ms_ci95"]
        speed = ""
        if "speedup" in record:
            least, most = record["speedup_ci95"]
            speed = f"{record['speedup']:.3f}x ({least:.3f}-{most:.3f})"
            speed += "" if record["significant"] else " not significant"
        latency = f"{record['latency_ms']:.4f} ms ({low:.4f}-{high:.4f})"
        latency += " without copies" if record.get("without_copies") else ""
        named = [record[name] for name in ("file", *places)]
        rows.append([*named, latency, speed, str(record.get("samples", ""))])
    return rows


def _second_opinion(record: dict[str, Any]) -> str:
    found = record["cross_check"]
    if "failed" in found:
        return f"trtexec, {record['file']}: {found['failed']}"
    difference = found["trtexec_ms"] / record["latency_ms"] - 1
    note = f" ({found['note']})" if "note" in found else ""
    return f"trtexec, {record['file']}: {found['trtexec_ms']:.4f} ms, {difference:+.1%}{note}"


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--why", is_flag=True, help="Also what was done to each group, and what failed.")
@JSON
def report(run: Path, why: bool, as_json: bool) -> None:
    """Show the result of a run again, or how far an unfinished one is.

    \b
    hwloop report hwloop-run
    hwloop report hwloop-run --why
    """
    from hwloop.report.text import notes, summary_rows
    from hwloop.run import reading
    from hwloop.run.folder import RunFolder

    found = reading.read(RunFolder(run))
    if found.get("finished") is False:
        show(found, as_json=as_json, text=reading.unfinished_text(found))
        return
    lines = [columns(summary_rows(found)), *notes(found)]
    if why:
        actions = [[item["group"], item["action"]] for item in found["best"]["actions"]]
        lines.append("\n" + columns([["group", "action"], *actions]))
        lines.extend(f"failed: {reason}" for reason in found["search"]["failures"])
    show(found, as_json=as_json, text="\n".join(lines))


main.add_command(table)
main.add_command(target)
main.add_command(doctor)


def run() -> NoReturn:
    """The console script: every error becomes a message and an exit code, none a traceback."""
    STOP.install()
    asked = Asked()
    try:
        # It returns an exit code where click itself has ended the command, as --help does.
        code = main.main(prog_name="hwloop", standalone_mode=False, obj=asked)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        click.echo(printable(said.getvalue()), err=True, nl=False)
        sys.exit(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nhwloop: stopped; repeat the command to go on", err=True)
        sys.exit(STOP.code)
    except Carried as carrier:
        sys.exit(_explained(carrier.__cause__ or carrier, asked))
    except Exception as error:  # the boundary: whatever nobody foresaw is a bug
        sys.exit(_explained(error, asked))
    sys.exit(code if isinstance(code, int) else ExitCode.MET)


def _explained(error: BaseException, asked: Asked) -> ExitCode:
    """Say what happened on stderr; returns the exit code."""
    if asked.debug:
        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError):
        error = missing(error) or error
    if not isinstance(error, HwloopError):
        say_internal(error)
        return ExitCode.FAILED
    click.echo(printable(f"hwloop: {error.message}"), err=True)
    if error.hint:
        click.echo(printable(f"  fix: {error.hint}"), err=True)
    return error.exit_code
