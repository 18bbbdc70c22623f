"""``hwloop target`` and ``hwloop doctor``: what a target is, and what it lacks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwloop.cli.common import HOST, JSON, TARGET_VARIABLE, Command, Group, columns, console, show
from hwloop.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from hwloop.measure.doctor.check import Visit


@click.group(cls=Group)
def target() -> None:
    """Where latency can be measured.

    \b
    hwloop target list
    hwloop target check
    """


@target.command("list")
@JSON
def target_list(as_json: bool) -> None:
    """Every target that --target finds by name.

    \b
    hwloop target list
    hwloop target list --json
    """
    from hwloop.measure.profile_file import known_profiles, load_profile

    found = [load_profile(name) for name in sorted(known_profiles())]
    records = [
        {"name": p.name, "description": p.description, "verified": p.verified} for p in found
    ]
    rows = [[p.name, "yes" if p.verified else "no", p.description] for p in found]
    show(records, as_json=as_json, text=columns([["target", "verified", "description"], *rows]))


@target.command("show")
@click.argument("name")
@JSON
def target_show(name: str, as_json: bool) -> None:
    """A target's profile as it was read.

    \b
    hwloop target show cpu
    hwloop target show jetson-orin --json
    """
    from hwloop.measure.profile_file import load_profile
    from hwloop.parsing import to_json

    found = to_json(load_profile(name))
    show(found, as_json=as_json, text=json.dumps(found, indent=2))


@target.command("check")
@click.argument("name", required=False, default="cpu", envvar=TARGET_VARIABLE)
@HOST
@JSON
def target_check(name: str, host: str | None, as_json: bool) -> None:
    """Start the worker, read the device's state, measure a layer against itself.

    NAME is a target's name or the file of its profile; without it, the environment variable
    HWLOOP_TARGET decides, or else it is cpu.

    \b
    hwloop target check
    hwloop target check cpu --json
    hwloop target check jetson-orin --host me@192.168.1.7
    """
    from hwloop.measure import checking

    found = checking.check_target(name, host=host)
    show(found, as_json=as_json, text=_lines(found["checks"]))
    if any(item["state"] == "fail" for item in found["checks"]):
        sys.exit(ExitCode.TARGET)


@click.command(cls=Command)
@click.option(
    "--target",
    metavar="NAME|FILE",
    envvar=TARGET_VARIABLE,
    show_envvar=True,
    help="Also look at this target.",
)
@HOST
@click.option("--quick", is_flag=True, help="Only read, in seconds; no engine is built.")
@click.option(
    "--bundle",
    metavar="FILE.zip",
    type=click.Path(path_type=Path),
    help="Pack what was seen, to send it back.",
)
@click.option(
    "--run",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A run whose report is packed too.",
)
@JSON
def doctor(
    target: str | None,
    host: str | None,
    quick: bool,
    bundle: Path | None,
    run: Path | None,
    as_json: bool,
) -> None:
    """What is missing or wrong on this machine and on a target, with the command that fixes it.

    On a TensorRT target it also builds engines: what a launch costs, which INT8 rows are taken,
    what a network's layers and the power rails say. That takes minutes; --quick leaves it out.

    \b
    hwloop doctor
    hwloop doctor --target jetson-orin
    hwloop doctor --target jetson-orin --bundle orin.zip
    """
    from hwloop.measure.doctor import visit as examination

    if target is None and (bundle or host):
        raise UsageError(f"--{'bundle' if bundle else 'host'} is about a target", "--target NAME")
    if run is not None and bundle is None:
        raise UsageError("--run is about a bundle", "--bundle FILE.zip")
    if target is None:
        return _end(examination.visit(None), as_json=as_json)
    lacking = examination.without(target)
    if lacking is not None:
        return _end(lacking, as_json=as_json)
    found, packed = _visit_target(target, host, quick=quick, bundle=bundle, run=run)
    return _end(found, packed, as_json=as_json)


def _visit_target(
    target: str, host: str | None, *, quick: bool, bundle: Path | None, run: Path | None
) -> tuple[Visit, str | None]:
    """What was seen there, and what was packed of it."""
    from hwloop.measure.doctor.bundle import check_place, read_report, write_bundle
    from hwloop.measure.doctor.visit import visit
    from hwloop.measure.profile_file import resolve

    profile = resolve(target, host=host)
    if bundle is not None:
        check_place(bundle)
    report = None if run is None else read_report(run)
    with console() as progress:
        found = visit(profile, quick=quick, record=bundle is not None, progress=progress)
    if bundle is None:
        return found, None
    packed = write_bundle(bundle, found, profile=profile, report=report)
    return found, f"packed {packed}; look inside before you send it: unzip -p {bundle} | less"


def _end(found: Visit, packed: str | None = None, *, as_json: bool) -> None:
    from hwloop.parsing import to_json

    checks = to_json(found.checks)
    if packed is not None:
        checks.append({"state": "ok", "what": packed, "fix": None})
    show(checks, as_json=as_json, text=_lines(checks))
    if found.failed:
        sys.exit(ExitCode.ENVIRONMENT)


def _lines(checks: list[dict[str, Any]]) -> str:
    lines = []
    for item in checks:
        lines.append(f"{item['state']:4}  {item['what']}")
        if item["fix"]:
            lines.append(f"      fix: {item['fix']}")
    return "\n".join(lines)
