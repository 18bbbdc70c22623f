"""Run folders from somebody else: nothing they name runs, nothing beside them is touched.

One real run is made, copied, altered and given to every command that reads a run. Whatever was
altered, the command ends by itself with an exit code of its own, without a traceback; no code that
the folder names is imported, and everything beside the folder stays as it was, byte for byte.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from test_identity import snapshot
from tiny import SMALL, SPEC, Said, TinyNet, TinyTask, inside, network

import hwloop
from hwloop.errors import ExitCode, HwloopError, TargetError, UsageError
from hwloop.files import sha256
from hwloop.measure import bench as benching
from hwloop.measure.profile import load_profile
from hwloop.measure.session import DeviceSession
from hwloop.run import admission, stages
from hwloop.run import dry_run as plan

Capsys = pytest.CaptureFixture[str]
Alter = Callable[[Path], Any]

BESIDE = "what is beside the run"
LONGEST_S = 30
BEST = "best/candidate.json"
EVIL = """
from pathlib import Path
Path({canary!r}).touch()
def pwn(*args):
    Path({canary!r}).touch()
"""


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Task, network and target are the same in every case: checked and started once."""
    checked, kept = admission.checked, []

    def once(*args: Any) -> Any:
        kept[:] = kept or [checked(*args)]
        return kept[0]

    def unreachable(*args: Any) -> Any:
        raise TargetError("no target here")

    with pytest.MonkeyPatch.context() as patch, DeviceSession(load_profile("fake")) as session:
        patch.setattr(stages, "DeviceSession", lambda profile: contextlib.nullcontext(session))
        patch.setattr(admission, "checked", once)
        patch.setattr(plan, "checked", once)
        patch.setattr(benching, "DeviceSession", unreachable)
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound run."""
    run = tmp_path_factory.mktemp("plain") / "run"
    hwloop.optimize(
        task=SPEC,
        target="fake",
        evaluations=4,
        loop_steps=1,
        final_steps=2,
        finalists=1,
        max_drop=None,
        min_speedup=1.05,
        agent="random",  # it decides at once, others take most of the time
        run=run,
    )
    return run


@pytest.fixture
def run(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, in a folder with what must stay as it is."""
    made = Path(shutil.copytree(plain, tmp_path / "run", symlinks=True))
    outside, here = tmp_path / "outside", tmp_path / "here"
    (outside / "folder").mkdir(parents=True)
    here.mkdir()
    for name in ("canary", "folder/canary", "folder/0123456789abcdef.safetensors"):
        (outside / name).write_text(f'{{"{BESIDE}": 1}}\n')
    code = EVIL.format(canary=str(outside / "PWNED"))
    for folder in (made, made / "best", outside, here):
        (folder / "evil.py").write_text(code)
    monkeypatch.chdir(here)

    def late(number: int, frame: Any) -> None:
        raise AssertionError(f"still at work after {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST_S)
    yield made
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def beside(run: Path) -> dict[str, Any]:
    """Everything beside the run; what Python caches of imported code would show here too."""
    found = {}
    for name in ("outside", "here"):
        found.update({f"{name}/{key}": v for key, v in snapshot(run.parent / name).items()})
    found["all"] = sorted(path.name for path in run.parent.iterdir())
    return found


QUICK = (*SMALL, "--task", SPEC, "--agent", "random")
COMMANDS: dict[str, Callable[[Path], list[Any]]] = {
    "why": lambda run: ["report", run, "--why"],
    "json": lambda run: ["report", run, "--json"],
    "bench": lambda run: ["bench", run],
    "dry run": lambda run: ["optimize", *QUICK, "--run", run, "--dry-run"],
    "optimize": lambda run: ["optimize", *QUICK, "--run", run],
}
READING = ("why", "json", "bench", "dry run")
DENSE = network()


class Quick(TinyTask):
    def model(self) -> torch.nn.Module:
        return copy.deepcopy(DENSE)


WITHOUT_TRUST: tuple[dict[str, Any], ...] = ({}, {"model": DENSE}, {"task": Quick})
DOCUMENTED = (ExitCode.MET, ExitCode.USAGE, ExitCode.NOT_MET)


def sound(name: str, said: Said) -> bool:
    text = said.out + said.err
    lost = (ExitCode.TARGET,) if name == "bench" else ()  # bench has none here
    assert said.code in (*DOCUMENTED, *lost), f"{name}: {said.code} {text}"
    assert "Traceback" not in text
    assert "internal error" not in text
    assert "Warning" not in text, text
    assert BESIDE not in text
    assert "\x1b" not in text
    assert said.code != ExitCode.USAGE or "fix:" in said.err, said.err
    return True


def everything(
    run: Path, capsys: Capsys, *, names: Any = READING, trust: bool = False
) -> dict[str, int]:
    """Exit codes by command, after all that must hold whatever was altered."""
    before = beside(run)
    codes = {}
    for options in (*WITHOUT_TRUST, *([{"trust": True}] if trust else [])):
        key = "load " + "".join(options)
        codes[key], refused = 0, None
        try:
            assert isinstance(hwloop.load(run, **options), torch.nn.Module)
        except HwloopError as error:
            refused = error
            codes[key] = int(error.exit_code)
        assert refused is None or isinstance(refused, UsageError)
        assert BESIDE not in f"{refused} {getattr(refused, 'hint', '')}"
        assert beside(run) == before, key
    for name in names:
        said = inside(capsys, *COMMANDS[name](run))
        sound(name, said)
        codes[name] = said.code
        assert beside(run) == before, name
    return codes


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


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


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
            "seed table loop_steps loop_allowance finalists final_steps inputs versions"
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


# ------------------------------------------------------------------------- the candidate


def weights(data: bytes) -> Alter:
    """Other weights, under their right digest."""

    def alter(run: Path) -> None:
        (run / "best" / "model.safetensors").write_bytes(data)
        edit(run / BEST, safetensors_sha256=sha256(data))

    return alter


def note(**changes: Any) -> Alter:
    return lambda run: edit(run / BEST, **changes)


def header(text: str, data: bytes = b"", length: int | None = None) -> Alter:
    head = text.encode()
    return weights(struct.pack("<Q", len(head) if length is None else length) + head + data)


def entry(dtype: str, shape: list[Any], start: int, end: int) -> str:
    about = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return json.dumps({"conv.weight": about})


def reshaped(run: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
    from safetensors.torch import load

    kept = load((run / "best" / "model.safetensors").read_bytes())
    return bytes(save({name: change(value).contiguous() for name, value in kept.items()}))


def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Alter:
    return lambda run: weights(reshaped(run, change))(run)


def actions(*values: dict[str, Any]) -> Alter:
    full = [{"kind": "keep", "amount": 1.0, "precision": "base", **value} for value in values]
    return note(candidate={"actions": full})


KEPT: dict[str, Any] = {}
CANDIDATES: dict[str, Alter] = {
    "align 0": note(align=0),
    "align 1024": note(align=1024),
    "align 1e308": note(align=1e308),
    "align true": note(align=True),
    "huge input": note(input_shape=[1, 1, 100_000, 100_000]),
    "large input": note(input_shape=[1, 1, 16_000, 16_000]),
    "many inputs": note(input_shape=[1 << 20, 1, 8, 8]),
    "other channels": note(input_shape=[1, 3, 8, 8]),
    "no input": note(input_shape=[]),
    "negative input": note(input_shape=[-1, 1, 8, 8]),
    "text as input": note(input_shape=["x", 1]),
    "small input": note(input_shape=[1, 1, 1, 1]),
    "flat input": note(input_shape=[1, 64]),
    "six dimensions": note(input_shape=[1] * 6),
    "no actions": actions(),
    "too few actions": actions(KEPT, KEPT),
    "too many actions": actions(*[KEPT] * 5),
    "very many actions": actions(*[KEPT] * 20_000),
    "an unknown amount": actions(*[{"kind": "prune", "amount": 0.3}] * 4),
    "an unknown kind": actions(*[{"kind": "exec"}] * 4),
    "what nothing can do": actions(*[{"kind": "sparse24", "amount": 0.5}] * 4),
    "the classifier pruned": actions(*[{"kind": "prune", "amount": 0.25}] * 4),
    "everything kept": actions(*[KEPT] * 4),
    "all int8": actions(*[{"precision": "int8"}] * 4),
    "another digest": note(safetensors_sha256="0" * 64),
    "no digest": note(safetensors_sha256=None),
    "scalars": each(lambda value: value.reshape(-1)[:1]),
    "one dimension more": each(lambda value: value[None]),
    "integers": each(lambda value: value.to(torch.int64)),
    "truth values": each(lambda value: value > 0),
    "halves": each(lambda value: value.half() if value.is_floating_point() else value),
    "complex": each(lambda value: value.to(torch.complex64)),
    "not finite": each(lambda value: value * float("nan") if value.is_floating_point() else value),
    "no tensors": lambda run: weights(bytes(save({})))(run),
    "other names": lambda run: weights(bytes(save({"x": torch.zeros(1)})))(run),
    "nothing": weights(b""),
    "a lying length": header("{}", length=(1 << 63) - 1),
    "a length of 2^64": header("{}", length=(1 << 64) - 1),
    "a longer length": header("{}", length=1000),
    "no header": header("[1]"),
    "a deep header": header("[" * 100_000),
    "an unknown type": header(entry("F9", [1], 0, 4), b"\0" * 4),
    "a type of four bits": header(entry("F4", [2], 0, 1), b"\0"),
    "too many values": header(entry("F32", [1 << 40], 0, 4), b"\0" * 4),
    "an overflow": header(entry("F32", [1 << 62, 1 << 62], 0, 0)),
    "no values": header(entry("F32", [0], 0, 0)),
    "backwards": header(entry("F32", [1], 4, 0), b"\0" * 4),
    "beyond the end": header(entry("F32", [1], 0, 1 << 40), b"\0" * 4),
    "a hole": header(entry("F32", [1], 4, 8), b"\0" * 8),
    "a negative size": header(entry("F32", [-1], 0, 4), b"\0" * 4),
}
MAY_LOAD = {"not finite", "all int8", "small input"}


@pytest.mark.parametrize("case", CANDIDATES)
def test_a_candidate_that_cannot_be_is_refused(case: str, run: Path, capsys: Capsys) -> None:
    CANDIDATES[case](run)
    codes = everything(run, capsys, names=())
    assert case in MAY_LOAD or set(codes.values()) == {ExitCode.USAGE}, codes


def test_another_network_than_the_run_s_is_refused(run: Path) -> None:
    class Wider(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 24, 3, padding=1, bias=False)
            self.bn = torch.nn.BatchNorm2d(24)

    for model in (Wider, torch.nn.Linear(64, 4), torch.nn.Identity(), lambda: torch.nn.Flatten()):
        with pytest.raises(hwloop.UsageError):
            hwloop.load(run, model=model)


def test_a_cache_that_is_gone_is_made_anew(run: Path, capsys: Capsys) -> None:
    for path in run.glob("candidates/*.safetensors"):
        path.unlink()
    (run / "best").unlink()
    shutil.rmtree(next(path for path in (run / "candidates").iterdir() if path.is_dir()))
    assert everything(run, capsys, names=("optimize",))["optimize"] == 0
    assert isinstance(hwloop.load(run, task=TinyTask), torch.nn.Module)


# ------------------------------------------------------------------------- the store


def sql(statement: str, *values: Any) -> Alter:
    def alter(run: Path) -> None:
        with sqlite3.connect(run / "hwloop.sqlite") as db:
            assert db.execute(statement, values).rowcount != 0, statement
        db.close()

    return alter


def record(kind: str, text: str | bytes | float | None) -> Alter:
    """Every value of a kind; the key of a run's inputs is part of most kinds."""
    return sql("UPDATE records SET value = ? WHERE kind LIKE ?", text, f"{kind}%")


def of_run(key: str, text: str | bytes) -> Alter:
    return sql("UPDATE records SET value = ? WHERE kind = 'run' AND key = ?", text, key)


def each_record(kind: str, change: Callable[[Any], Any], renamed: str = "") -> Alter:
    """Every value of a kind as ``change`` makes it, under another kind if one is given."""

    def alter(run: Path) -> None:
        with sqlite3.connect(run / "hwloop.sqlite") as db:
            question = "SELECT kind, key, value FROM records WHERE kind LIKE ?"
            found = db.execute(question, (f"{kind}%",)).fetchall()
            assert found
            for where, key, value in found:
                row = (where.replace(kind, renamed or kind), json.dumps(change(json.loads(value))))
                statement = "UPDATE records SET kind = ?, value = ? WHERE kind = ? AND key = ?"
                db.execute(statement, (*row, where, key))
        db.close()

    return alter


def changed(kind: str, **changes: Any) -> Alter:
    """Every value of a kind with some fields replaced."""
    return each_record(kind, lambda value: {**value, **changes})


def rows(measurement: dict[str, Any]) -> Alter:
    def change(value: Any) -> Any:
        return {**value, "measurement": {**value["measurement"], **measurement}}

    return each_record("row/", change)


def trial(changes: dict[str, Any], **outcome: Any) -> Alter:
    """Every trial with some fields replaced, and some of its outcome's."""

    def alter(run: Path) -> None:
        with sqlite3.connect(run / "hwloop.sqlite") as db:
            for number, value in db.execute("SELECT number, value FROM trials").fetchall():
                found = json.loads(value)
                found["outcome"].update(outcome)
                text = json.dumps({**found, **changes})
                db.execute("UPDATE trials SET value = ? WHERE number = ?", (text, number))
        db.close()

    return alter


def flat(value: float) -> dict[str, Any]:
    """The fields of a measurement that is the same at every sample."""
    return {"samples_ms": [value] * 3, "reference_ms": [1e9] * 3, "reference_latency_ms": value}


FAILED = {"state": "failed", "outcome": None, "reason": "\x1b[2J\r\nhwloop: all is well\u202e"}


def refusal(row: Any) -> Any:
    """As if the target had refused it; the empty call and the reference are among them."""
    return {"config": row["config"], "reason": "\x1b[2J"}


def unstable(final: Any) -> Any:
    return {**final, "measurement": {**final["measurement"], "unstable": ["\x1b[2J"]}}


def older(final: Any) -> Any:
    return {name: value for name, value in final.items() if name != "copies"}


NO_ENERGY = {"energy_mj": "x", "source": "\x1b"}
MENU = [{"kind": "prune", "amount": 0.3, "precision": "base"}] * 4
ENDLESS = (
    "CREATE VIEW records AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT 'run' AS kind, i AS key, '1' AS value FROM n"
)
STORES: dict[str, Alter] = {
    "a trigger": sql("CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM trials; END"),
    "a view": lambda run: [sql("ALTER TABLE records RENAME TO r")(run), sql(ENDLESS)(run)],
    "null trials": sql("UPDATE trials SET value = 'null'"),
    "trials of bytes": sql("UPDATE trials SET value = x'ff00'"),
    "trials of spaces": sql("UPDATE trials SET value = ?", " " * (8 << 20)),
    "deep trials": sql("UPDATE trials SET value = ?", "[" * 100_000),
    "another digest": sql("UPDATE trials SET digest = 'x' || number"),
    "a digest of bytes": sql("UPDATE trials SET digest = CAST(number || 'x' AS BLOB)"),
    "other numbers": sql("UPDATE trials SET number = number + 100"),
    "negative numbers": sql("UPDATE trials SET number = number - 100"),
    "no trials": sql("DELETE FROM trials"),
    "one trial less": sql("DELETE FROM trials WHERE number = 1"),
    "another menu": trial({"candidate": {"actions": MENU}}),
    "failed trials": trial(FAILED),
    "odd sources": trial({"source": "\u202eplanner"}),
    "sources with escapes": trial({"source": "\x1b[31m"}),
    "absurd predictions": trial({"predicted_ms": 1e300}),
    "absurd metrics": trial({}, metric=1e300, metric_drop=-1e300),
    "absurd latencies": trial({"predicted_ms": 1e30}, latency_ms=1e-9),
    "absurd measurements": trial({}, measurement=flat(1e-9)),
    "absurd sizes": trial({}, size_bytes=1 << 62, macs=1 << 62),
    "a latency of nothing": record("latency", "{}"),
    "latencies that are absurd": changed("latency", **flat(1e-9)),
    "latencies that are huge": changed("latency", **flat(1e9)),
    "latencies with escapes": changed("latency", unstable=["\x1b[2J\u202e"], stopped="\x1b"),
    "a baseline of nothing": record("baseline", "null"),
    "a baseline that is absurd": record("baseline", "1e300"),
    "a score of text": record("score", '"x"'),
    "scores that are absurd": changed("score", metric=-1e300, drop=-1e300, upper_drop=-1e300),
    "scores that are huge": changed("score", metric=1e300, drop=1e300, upper_drop=None),
    "probes of nothing": record("probe", "[]"),
    "probes that are absurd": changed("probe", kl=1e300, drop=1e300),
    "probes that are negative": changed("probe", kl=-1e300, drop=0.1),
    "probes that failed": record("probe", '{"failed": "\\u001b[2J"}'),
    "a finalist of nothing": record("finalist", "{}"),
    "a finalist of another network": changed("finalist", candidate={"actions": MENU}),
    "a finalist with too few actions": changed("finalist", candidate={"actions": MENU[:1]}),
    "a finalist of endless steps": changed("finalist", steps=1 << 60, latency_ms=1e-9, drop=-1e300),
    "a finalist that is absurd": changed("finalist", latency_ms=-1e300, drop=-1e300, speedup=0.0),
    "a final of nothing": record("final/", "true"),
    "a final that is absurd": changed("final/", metric=1e300, dense_metric=-1e300),
    "a final with escapes": each_record("final/", unstable),
    "a final with energy": changed("final/", energy_mj={}),
    "a final with odd energy": changed("final/", energy_mj={"baseline": {}, "best": {"a": []}}),
    "a final with text as energy": changed(
        "final/",
        energy_mj={"baseline": NO_ENERGY, "best": NO_ENERGY},
    ),
    "a final of older times": each_record("final/", older),
    "a final with odd copies": changed("final/", copies={"baseline": {}, "best": 7}),
    "a final with failed copies": changed("final/", copies={"failed": "\x1b[2J"}),
    "a choice of FP16": sql(
        """INSERT INTO records VALUES ('run', 'fp16', '{"operators": ["Conv"], "reason": ""}')"""
    ),
    "a kind of INT8 row": sql(
        "INSERT INTO records SELECT DISTINCT replace(kind, 'row/', 'int8/'), 'conv', '{}' "
        "FROM records WHERE kind LIKE 'row/%'"
    ),
    "an engine": sql("INSERT INTO records VALUES ('final', 'engine', '{\"file\": [1]}')"),
    "weights of another digest": record("weights", json.dumps("0" * 64)),
    "weights of no digest": record("weights", "7"),
    "another device": of_run("fingerprint", '{"device": "x"}'),
    "a device with escapes": of_run(
        "fingerprint", '{"device": "\\u001b[2J", "runtime": "fake", "runtime_version": "1"}'
    ),
    "inputs of nothing": of_run("inputs", "{}"),
    "inputs of lists": of_run("inputs", '{"hwloop": [], "train": 7}'),
    "an odd version": of_run("inputs", '{"hwloop": {"\\u202e": {"a": 1}}}'),
    "no inputs": sql("DELETE FROM records WHERE kind = 'run'"),
    "seconds of text": of_run("seconds", '{"train": "x"}'),
    "absurd seconds": of_run("seconds", '{"train": -1e300}'),
    "absurd time": of_run("wall_s", "-1e300"),
    "a reward of text": of_run("best_reward", '"x"'),
    "rows from before": of_run("rows_before", "-1"),
    "very many rows from before": of_run("rows_before", str((1 << 63) - 1)),
    "a stage with escapes": of_run("stage", '"\\u001b[2J"'),
    "a stage of a list": of_run("stage", "[1]"),
    "rows of nothing": record("row/", "{}"),
    "rows of absurd values": rows(flat(1e9)),
    "rows of tiny values": rows(flat(1e-9)),
    "populations of nothing": record("population", "{}"),
    "every row refused": each_record("row/", refusal, "refused/"),
    "a text of null bytes": record("probe", b"\0" * 1000),
    "a number as a value": record("probe", 7.5),
}


DAMAGED = {
    *("a trigger", "a view", "null trials", "other numbers", "negative numbers", "one trial less"),
    *("another digest", "another menu", "sources with escapes", "absurd predictions"),
    *("a latency of nothing", "a baseline of nothing", "probes of nothing"),
    *("probes that are absurd", "probes that are negative"),
    *("a finalist of nothing", "a finalist of another network"),
    *("a finalist with too few actions", "a finalist of endless steps", "a final of nothing"),
    *("a final with energy", "a final with odd energy", "a final with text as energy"),
    *("a final with odd copies", "a choice of FP16", "a kind of INT8 row"),
    *("weights of no digest", "another device", "inputs of nothing", "rows from before"),
    *("rows of nothing", "a text of null bytes", "a number as a value"),
}


@pytest.mark.parametrize("case", STORES)
def test_a_store_that_was_altered(case: str, run: Path, capsys: Capsys) -> None:
    STORES[case](run)
    (run / "report.json").unlink()  # so that the report is about the store
    before = beside(run)
    for name in ("json", "dry run", "optimize", "why"):
        said = inside(capsys, *COMMANDS[name](run))
        blocks = name == "optimize" and case == "every row refused"
        assert name != "optimize" or case not in DAMAGED or said.code == ExitCode.USAGE
        assert (blocks and said.code == ExitCode.TARGET) or sound(name, said)
        assert beside(run) == before
    assert b"\x1b" not in (run / "report.md").read_bytes()
