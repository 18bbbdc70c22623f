"""Profiles that somebody else wrote, and targets that ask for what there is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import inside

from hwloop.device import SettingsRefused, state
from hwloop.device.ort import OrtRuntime
from hwloop.errors import TargetError, UsageError
from hwloop.findings import Measurement
from hwloop.measure import checking, refusals
from hwloop.measure.doctor.host import host_checks
from hwloop.measure.profile import document
from hwloop.measure.profile_file import load_profile, resolve
from hwloop.measure.session import DeviceSession

Capsys = pytest.CaptureFixture[str]
HEAD = 'description = "d"\nruntime = "onnxruntime"\n'
FAR = HEAD + 'transport = "ssh"\n'
CORES = len(state.usable_cores())
TOP = {
    "description": '"d"',
    "runtime": '"onnxruntime"',
    "transport": '"ssh"',
    "host": '"h"',
    "python": '"python3"',
    "datasheet": "{}",
}


def with_value(key: str, value: str) -> str:
    return "".join(f"{name} = {text}\n" for name, text in {**TOP, key: value}.items())


HOSTILE: dict[str, str | bytes] = {
    "no UTF-8": b'description = "\xff"',
    "binary": bytes(range(256)),
    "nested lists": HEAD + "x = " + "[" * 100_000,
    "nested lists that end": HEAD + "[settings]\nfaults = " + "[" * 300 + "]" * 300,
    "nested tables": HEAD + "x = " + "{a = " * 50_000,
    "nested names": HEAD + "[" + ".".join("a" * 5000) + "]",
    "NaN seconds": HEAD + "[timeouts]\nbuild_s = nan",
    "endless seconds": HEAD + "[timeouts]\nbuild_s = -inf",
    "an endless integer": HEAD + "[timeouts]\nbuild_s = " + "9" * 5000,
    "a huge integer": HEAD + "[timeouts]\nbuild_s = " + "9" * 400,
    "huge samples": HEAD + "[protocol.row]\nmin_samples = 99999999999",
    "huge threads": HEAD + "[settings]\nthreads = 99999999999999999999",
    "a list in a list": HEAD + "[space]\nkinds = [[]]",
    "a table in a list": HEAD + "[space]\nprecisions = [{a = 1}]",
    "a date": HEAD + "[space]\nkinds = [1979-05-27]",
    "an alignment of true": HEAD + "[space]\nalign = true",
    "an alignment that is a list": HEAD + "[space]\nalign = [8]",
    "a recipe that is a list": HEAD + "[space]\nrecipe = []",
    "faults in words": 'description = "d"\nruntime = "fake"\n[settings]\nfaults = {build = 1}',
    "faults at a date": 'description = "d"\nruntime = "fake"\n'
    "[settings.faults]\nbuild = {kind = 1979-05-27}",
    "faults of another kind": 'description = "d"\nruntime = "fake"\n'
    '[settings.faults]\nbuild = {kind = "rm"}',
    "faults of no verb": 'description = "d"\nruntime = "fake"\n[settings.faults]\nx = {}',
    "a description that moves the cursor": 'description = "\\u001b[2J"\nruntime = "fake"',
    "a description of lines": 'description = "a\\nb"\nruntime = "fake"',
    "a datasheet of NaN": HEAD + '[datasheet]\ngbytes_per_s = nan\nsource = "s"\n'
    "tmacs_per_s = {fp32 = 1, fp16 = 1, int8 = 1}",
    "a datasheet of a list": HEAD + '[datasheet]\ngbytes_per_s = 1\nsource = "s"\n'
    "tmacs_per_s = {fp32 = [], fp16 = 1, int8 = 1}",
    **{f"{key} of the wrong type": with_value(key, "[[1]]") for key in TOP},
    **{
        f"{key} as a list": f"{HEAD}{key} = []\n"
        for key in ("settings", "space", "timeouts", "protocol", "verified", "simulated")
    },
    **{
        f"host {text}": f"{FAR}host = '{text}'\n"
        for text in ("-oProxyCommand=touch x", "h;touch x", "h`id`", "h $(id)", "|id", "h\tid")
    },
    "a host that is not used": HEAD + 'host = "-oProxyCommand=touch x"',
    **{
        f"python {text}": f"{FAR}python = '{text}'\n"
        for text in ("-c id", "python3 -c x", "py;id", "$(id)", "py&", "py>x", "~/py", "")
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_profile_is_a_users_mistake(tmp_path: Path, capsys: Capsys, name: str) -> None:
    path, content = tmp_path / "mine.toml", HOSTILE[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = inside(capsys, "target", "show", path)
    assert said.code == 2, said.err or said.out
    assert "Traceback" not in said.err
    assert str(path) in said.err
    assert len(said.err) < 1000
    assert "\x1b" not in said.err
    assert [item.name for item in tmp_path.iterdir()] == ["mine.toml"]


def a_large_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 << 20)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, a_large_file])
def test_what_is_no_profile_is_refused_without_a_wait(
    tmp_path: Path, capsys: Capsys, make: Callable[[Path], Any]
) -> None:
    path = tmp_path / "mine.toml"
    make(path)
    assert inside(capsys, "target", "show", path).code == 2


def test_a_name_that_no_file_can_have_is_refused(capsys: Capsys) -> None:
    assert inside(capsys, "target", "show", "x" * 5000 + ".toml").code == 2


def test_the_keys_are_explained_in_a_file_that_exists(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + "colour = 1")
    with pytest.raises(UsageError) as caught:
        load_profile(str(path))
    assert Path(caught.value.hint.split()[1]).is_file()


def test_the_guide_to_hardware_is_a_file_that_exists() -> None:
    fixes = [check.fix for check in host_checks(load_profile("cuda")) if check.fix]
    (fix,) = [fix for fix in fixes if "on-hardware.md" in fix]
    assert Path(fix.split()[0]).is_file()


def test_what_is_installed_is_named_before_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwloop.measure import profile

    monkeypatch.setattr(profile, "PACKAGE", tmp_path / "hwloop")
    assert document("docs/a.md") == tmp_path / "docs" / "a.md"
    (tmp_path / "hwloop" / "docs").mkdir(parents=True)
    (tmp_path / "hwloop" / "docs" / "a.md").touch()
    assert document("docs/a.md") == tmp_path / "hwloop" / "docs" / "a.md"


def test_both_texts_are_in_the_wheel() -> None:
    from hwloop.measure.profile import PACKAGE
    from hwloop.measure.profile_file import tomllib

    build = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert included["profiles"] == "hwloop/profiles"
    assert included["docs/on-hardware.md"] == "hwloop/docs/on-hardware.md"


# ------------------------------------------------------------------------------------- cores


def with_threads(tmp_path: Path, threads: int) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(f"{HEAD}[settings]\nthreads = {threads}\n")
    return path


def test_more_threads_than_cores_are_refused_with_their_number(
    tmp_path: Path, capsys: Capsys
) -> None:
    path = with_threads(tmp_path, CORES + 1)
    said = inside(capsys, "target", "check", path)
    assert said.code == 2
    assert f"settings.threads = {CORES + 1}" in said.err
    assert f"{CORES} cores" in said.err
    assert resolve(str(with_threads(tmp_path, CORES))).settings == {"threads": CORES}


def test_a_worker_refuses_what_its_machine_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused, match=f"only {CORES} cores"):
        OrtRuntime({"threads": CORES + 1})
    profile = load_profile(str(with_threads(tmp_path, CORES + 1)))
    with pytest.raises(UsageError, match=f"only {CORES} cores") as caught:
        DeviceSession(profile).__enter__()
    assert "settings" in caught.value.hint


def test_a_boards_refusal_is_the_profiles_mistake_and_its_other_troubles_are_not() -> None:
    board = resolve("cpu", host="me@board")
    refused = refusals.refused(board, {"stage": "settings", "message": "only 4 cores"})
    assert isinstance(refused, UsageError)
    assert "only 4 cores" in str(refused)
    assert "me@board" in str(refused)
    assert isinstance(refusals.refused(board, {"stage": "start", "message": "x"}), TargetError)


# ------------------------------------------------------------------------------ target check


@pytest.mark.parametrize(
    ("ratio", "unstable", "state_", "code"),
    [
        (1.0, (), "ok", 0),
        (1.02, (), "ok", 0),
        (1.0, ("it drifts",), "warn", 0),
        (1.05, (), "warn", 0),
        (0.95, (), "warn", 0),
        (1.11, (), "fail", 4),
        (0.5, (), "fail", 4),
    ],
)
def test_a_target_that_disagrees_with_itself_fails_its_check(
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capsys,
    ratio: float,
    unstable: tuple[str, ...],
    state_: str,
    code: int,
) -> None:
    samples = (1.0,) * 20
    found = Measurement(samples_ms=samples, reference_ms=samples, reference_latency_ms=1.0)
    found = replace(found, samples_ms=(ratio,) * 20, unstable=unstable)
    monkeypatch.setattr(checking.measure, "baseline", lambda *arguments: found)
    said = inside(capsys, "target", "check", "fake")
    (line,) = [line for line in said.out.splitlines() if "against itself" in line]
    assert line.startswith(state_)
    assert said.code == code
