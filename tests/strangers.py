"""A run folder from somebody else: one real run, copied, and every command that reads it.

A file of tests imports the three fixtures, alters the copy and asks for :func:`everything`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_identity import snapshot
from tiny import SMALL, SPEC, Said, TinyTask, inside, network

import hwloop
from hwloop.errors import ExitCode, HwloopError, TargetError, UsageError
from hwloop.measure import bench as benching
from hwloop.measure.profile_file import load_profile
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


@pytest.fixture(name="quick", scope="module", autouse=True)
def quick_fixture() -> Iterator[None]:
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


@pytest.fixture(name="plain", scope="module")
def plain_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@pytest.fixture(name="run")
def run_fixture(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
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


QUICK = (*SMALL, "--task", SPEC)
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


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
