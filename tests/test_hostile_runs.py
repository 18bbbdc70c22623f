"""Run folders from somebody else: nothing they name runs, nothing beside them is touched.

One real run is made, copied, altered and given to every command that reads a run. Whatever was
altered, the command ends by itself with an exit code of its own, without a traceback; no code that
the folder names is imported, and everything beside the folder stays as it was, byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from strangers import BEST, COMMANDS, Alter, Capsys, beside, edit, everything, sound
from strangers import plain_fixture as plain_fixture
from strangers import quick_fixture as quick_fixture
from strangers import run_fixture as run_fixture
from tiny import TinyTask, inside

import hwloop
from hwloop.errors import ExitCode


def test_the_run_is_sound_to_begin_with(run: Path, capsys: Capsys) -> None:
    codes = everything(run, capsys, names=tuple(COMMANDS), trust=True)
    assert codes.pop("load ") == ExitCode.USAGE  # it names code
    assert codes.pop("bench") == ExitCode.TARGET
    assert set(codes.values()) == {0}


# ------------------------------------------------------------------------- code by its name

NAMES = (
    "evil.py:pwn",
    "evil:pwn",
    "./evil.py:pwn()",
    "../evil.py:pwn",
    "../../here/evil.py:pwn",
    "{outside}/evil.py:pwn",
    'os:system("touch {outside}/PWNED")',
    'subprocess:run(["touch", "{outside}/PWNED"])',
    "/dev/zero.py:x",
    "(object) evil.pwn",
    "x" * 100_000,
)
ELSEWHERE = ("{outside}/folder", "/dev/zero", "/etc/passwd", "../outside/canary", "../..", "\0")
HOSTS = ("-oProxyCommand=touch {outside}/PWNED", "a b", "`touch {outside}/PWNED`", "$(x)", "")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:30])
@pytest.mark.parametrize("key", ["model", "task"])
def test_code_that_a_candidate_names_is_not_run(
    key: str, name: str, run: Path, capsys: Capsys
) -> None:
    text = name.format(outside=run.parent / "outside")
    edit(run / BEST, **{key: text, "data": "/etc"})
    assert everything(run, capsys, names=())["load "] == ExitCode.USAGE


@pytest.mark.parametrize("key", ["model", "task", "data", "table", "target", "host"])
def test_what_a_configuration_names_is_neither_run_nor_opened(
    key: str, run: Path, capsys: Capsys
) -> None:
    os.mkfifo(run / "pipe")
    before = beside(run)
    names = NAMES if key in ("model", "task") else (*ELSEWHERE, *HOSTS, "pipe", "pipe.toml")
    for name in names:
        edit(run / "config.json", **{key: name.format(outside=run.parent / "outside")})
        for command in ("json", "dry run"):
            said = inside(capsys, *COMMANDS[command](run))
            sound(command, said)
        assert said.code == ExitCode.USAGE
        assert beside(run) == before
    assert everything(run, capsys, names=("optimize",))["optimize"] == ExitCode.USAGE


@pytest.mark.parametrize("name", ["/etc", "../../outside", "/dev/zero", "../pipe", 7, ["x"]])
def test_the_demo_of_a_folder_has_no_data_of_its_own(name: Any, run: Path, capsys: Capsys) -> None:
    os.mkfifo(run / "pipe")
    edit(run / BEST, task="demo", model=None, data=name)
    assert everything(run, capsys, names=(), trust=True)["load "] == ExitCode.USAGE


def test_trust_is_said_in_so_many_words(run: Path) -> None:
    for trust in (1, "no", "false", [0], object()):
        with pytest.raises(hwloop.UsageError, match="trust"):
            hwloop.load(run, trust=trust)  # type: ignore[arg-type]


# ------------------------------------------------------------------------- links and folders


def link(name: str, to: str) -> Alter:
    """Replace an entry of the run by a link; what is linked may be outside."""

    def alter(run: Path) -> None:
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(to.format(outside=run.parent / "outside"))

    return alter


def moved_out(name: str) -> Alter:
    """The entry itself, outside: what a link leads to is sound and must not be used."""

    def alter(run: Path) -> None:
        there = run.parent / "outside" / Path(name).name
        shutil.move(run / name, there)
        (run / name).symlink_to(there)

    return alter


def as_folder(name: str) -> Alter:
    def alter(run: Path) -> None:
        folder = (run / name).resolve()
        (run / name).unlink()
        shutil.copytree(folder, run / name)

    return alter


def linked_candidates(run: Path) -> None:
    shutil.rmtree(run / "candidates")
    (run / "candidates").symlink_to(run.parent / "outside" / "folder")


LINKS: dict[str, Alter] = {
    "best outside": link("best", "{outside}/folder"),
    "best beside": link("best", "../outside/folder"),
    "best is the parent": link("best", ".."),
    "best is the run": link("best", "."),
    "best is itself": link("best", "best"),
    "best is nowhere": link("best", "candidates/0123456789abcdef"),
    "best climbs": link("best", "candidates/../../outside/folder"),
    "best is a file": link("best", "report.json"),
    "best is a device": link("best", "/dev/zero"),
    "best is a plain folder": as_folder("best"),
    "best is a plain file": lambda run: (run / "best").unlink() or (run / "best").write_text(""),
    "best leads to a link": lambda run: moved_out(os.readlink(run / "best"))(run),
    "candidates outside": linked_candidates,
    "candidates moved outside": moved_out("candidates"),
    "candidates are the run": link("candidates", "."),
    "candidates are a file": lambda run: (
        shutil.rmtree(run / "candidates") or (run / "candidates").write_text("")
    ),
    "store moved outside": moved_out("hwloop.sqlite"),
    "report moved outside": moved_out("report.json"),
    "configuration moved outside": moved_out("config.json"),
    "graph moved outside": moved_out("dense.onnx"),
    "log moved outside": moved_out("events.jsonl"),
    "note moved outside": moved_out(BEST),
    "weights moved outside": moved_out("best/model.safetensors"),
    "network moved outside": moved_out("best/model.onnx"),
}


@pytest.mark.parametrize("case", LINKS)
def test_links_that_lead_out_are_not_followed(case: str, run: Path, capsys: Capsys) -> None:
    LINKS[case](run)
    codes = everything(run, capsys, names=tuple(COMMANDS))
    if "outside" in case or "link" in case:
        refused = {name for name, code in codes.items() if code == ExitCode.USAGE}
        assert "optimize" in refused
        assert "dry run" in refused
        if case.split()[0] in ("best", "candidates", "note", "weights"):
            assert {name for name in codes if name.startswith("load")} <= refused
        if case.split()[0] in ("report", "configuration", "store"):
            assert {"json", "why"} <= refused


def test_a_second_name_of_a_file_outside_is_not_written_through(run: Path, capsys: Capsys) -> None:
    for name in ("hwloop.sqlite", "events.jsonl", ".lock"):
        (run / name).unlink()
        os.link(run.parent / "outside" / "canary", run / name)
        assert everything(run, capsys, names=("why", "optimize"))["optimize"] == 2
        (run / name).unlink()


# ------------------------------------------------------------------------- planted names


def planted(name: str, kind: str) -> Alter:
    def alter(run: Path) -> None:
        best = os.readlink(run / "best").removeprefix("candidates/")
        kept = sorted(run.glob("candidates/*.safetensors"))[0].name
        path = run / name.format(pid=os.getpid(), best=best, kept=kept)
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
        make(path, kind, run.parent / "outside" / "canary")

    return alter


def make(path: Path, kind: str, canary: Path) -> None:
    if kind == "link":
        path.symlink_to(canary)
    elif kind == "folder":
        path.mkdir()
        (path / "inner").symlink_to(canary)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("planted")


TEMPORARY = (
    ".best",
    ".report.json.{pid}",
    "hwloop.sqlite-journal",
    "candidates/.{best}",
    "candidates/{best}",
    "candidates/{kept}",
    "candidates/.{kept}.{pid}",
)


@pytest.mark.parametrize("kind", ["link", "folder", "file"])
@pytest.mark.parametrize("name", TEMPORARY)
def test_what_waits_under_a_name_that_is_written_is_not_obeyed(
    name: str, kind: str, run: Path, capsys: Capsys
) -> None:
    planted(name, kind)(run)
    everything(run, capsys, names=("why", "optimize"))


# ------------------------------------------------------------------------- damaged files

FILES = (
    *("report.json", "config.json", "hwloop.sqlite", "events.jsonl", ".lock", "dense.onnx"),
    *("report.md", BEST, "best/model.onnx", "best/model.safetensors", "candidates/*.safetensors"),
)
KINDS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half of it": lambda data: data[: len(data) // 2],
    "no UTF-8": lambda data: data.replace(b'"', b'"\xff', 3)[:-1] + b"\xfe",
}
TEXTS: dict[str, bytes] = {
    "NaN": b'{"a": NaN}',
    "infinity": b"[Infinity, -Infinity]",
    "1e999": b'{"latency_ms": 1e999}',
    "many digits": b'{"seed": ' + b"9" * 100_000 + b"}",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "spaces": b" " * (70 << 20),
    "null": b"null",
    "a list": b"[]",
    "an object": b"{}",
    "a name twice": b'{"task": "a", "task": "b"}',
    "half a character": b'{"task": "\\ud800"}',
}


def entries(run: Path, name: str) -> list[Path]:
    return sorted(run.glob(name)) if "*" in name else [run / name]


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_none_is_refused(name: str, kind: str, run: Path, capsys: Capsys) -> None:
    for path in entries(run, name):
        path.unlink()
        make(path, kind, run.parent / "outside" / "canary")
    codes = everything(run, capsys, names=tuple(COMMANDS))
    assert codes["optimize"] == codes["dry run"] == ExitCode.USAGE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_or_made_anew(
    name: str, kind: str, run: Path, capsys: Capsys
) -> None:
    for path in entries(run, name):
        path.write_bytes(KINDS[kind](path.read_bytes()))
    codes = everything(run, capsys)
    if name == "config.json" or (name, kind) == ("hwloop.sqlite", "half of it"):
        assert everything(run, capsys, names=("optimize",))["optimize"] == ExitCode.USAGE
    if name in ("report.json", "config.json"):
        assert codes["why"] == codes["json"] == ExitCode.USAGE
    if name in (BEST, "best/model.safetensors"):
        assert codes["load model"] == codes["load task"] == ExitCode.USAGE


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_made_anew_is_made_anew(kind: str, run: Path, capsys: Capsys) -> None:
    for name in FILES:
        if name not in ("config.json", "hwloop.sqlite"):
            for path in entries(run, name):
                path.write_bytes(KINDS[kind](path.read_bytes()))
    assert everything(run, capsys, names=("optimize", "json"))["optimize"] == 0
    assert isinstance(hwloop.load(run, task=TinyTask), torch.nn.Module)


@pytest.mark.parametrize("kind", TEXTS)
def test_json_that_is_none_is_refused(kind: str, run: Path, capsys: Capsys) -> None:
    (run / BEST).write_bytes(TEXTS[kind])
    (run / "report.json").write_bytes(TEXTS[kind])
    assert set(everything(run, capsys, names=("why", "json")).values()) == {ExitCode.USAGE}
    (run / "report.json").unlink()
    (run / "config.json").write_bytes(TEXTS[kind])
    codes = everything(run, capsys, names=("why", "dry run", "optimize"))
    assert set(codes.values()) == {ExitCode.USAGE}


WRONG = (None, [], {}, "x", -1, 1e308, True, {"a": [1]})


def keys(name: str) -> list[str]:
    """Of the files as hwloop writes them now; a new key has to be added to the lists below."""
    return {
        "config.json": (
            "model task data target goal host simulate agent reward lam evaluations time_limit_s "
            "seed table loop_steps finalists final_steps finish_s inputs versions"
        ),
        "report.json": (
            "target goal metric_name baseline best comparisons pareto table search unstable clock "
            "disturbance warnings samples command versions precisions not_measured"
        ),
        BEST: (
            "align candidate data groups input_shape metric_drop model onnx_sha256 "
            "safetensors_sha256 stage task"
        ),
    }[name].split()


@pytest.mark.parametrize("name", ["config.json", "report.json", BEST])
def test_the_keys_are_all_of_them(name: str, plain: Path) -> None:
    assert sorted(json.loads((plain / name).read_text())) == sorted(keys(name))


@pytest.mark.parametrize("key", keys("config.json"))
def test_a_wrong_value_in_a_configuration(key: str, run: Path, capsys: Capsys) -> None:
    sound_text = (run / "config.json").read_text()
    for wrong in WRONG:
        (run / "config.json").write_text(sound_text)
        edit(run / "config.json", **{key: wrong})
        for name in ("why", *(["dry run"] if wrong in ([], -1) else [])):
            sound(name, inside(capsys, *COMMANDS[name](run)))


@pytest.mark.parametrize("key", keys("report.json"))
def test_a_wrong_value_in_a_report(key: str, run: Path, capsys: Capsys) -> None:
    report = json.loads((run / "report.json").read_text())
    inner = [(key, None)]
    if isinstance(report[key], dict):
        inner += [(key, name) for name in report[key]]
    for where, name in inner:
        for wrong in WRONG:
            value = wrong if name is None else {**report[key], name: wrong}
            (run / "report.json").write_text(json.dumps({**report, where: value}))
            sound("why", inside(capsys, *COMMANDS["why"](run)))
    sound("json", inside(capsys, *COMMANDS["json"](run)))


@pytest.mark.parametrize(
    "changes",
    [
        {"table": {"error": {"n": 5, "median_abs_pct": None, "within_10pct": None}, "rows": 1}},
        {"table": {"error": {"n": 5, "median_abs_pct": 1e300, "within_10pct": -1e300}, "rows": 1}},
        {"comparisons": {"x" * 400: {"failed": None}, "\u202e": {"failed": "\x1b[2J"}}},
        {"search": "asked"},
    ],
    ids=["no error", "huge error", "odd names", "asked"],
)
def test_a_report_that_contradicts_itself(
    changes: dict[str, Any], run: Path, capsys: Capsys
) -> None:
    report = json.loads((run / "report.json").read_text())
    if changes.get("search") == "asked":
        changes = {"search": {**report["search"], "asked": {"evaluations": {"a": [1]}}}}
    edit(run / "report.json", **changes)
    everything(run, capsys, names=("why", "json"))


def escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return f"\x1b]0;{value}\x07\x9b31m\r\u202e" if isinstance(value, str) else value


@pytest.mark.parametrize("name", ["report.json", "config.json", BEST])
def test_what_a_terminal_would_obey_is_not_printed(name: str, run: Path, capsys: Capsys) -> None:
    path = run / name
    path.write_text(json.dumps(escaped(json.loads(path.read_text()))))
    everything(run, capsys, names=tuple(COMMANDS))
