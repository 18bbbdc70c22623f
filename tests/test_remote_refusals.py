"""Boards that cannot be used: each says what is wrong and what fixes it, with exit code 4."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from board import Board, needs_board
from tiny import SPEC, hwloop

from hwloop.errors import HwloopError, TargetError
from hwloop.measure.hosts import parse_host
from hwloop.measure.profile import TargetProfile
from hwloop.measure.profile_file import load_profile
from hwloop.measure.session import DeviceSession

pytestmark = needs_board


@pytest.fixture
def profile(there: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TargetProfile:
    monkeypatch.setenv("PATH", str(there.folder / "bin"), prepend=":")
    return load_profile(str(there.profile(tmp_path / "there.toml", runtime="onnxruntime")))


def refusal(profile: TargetProfile) -> HwloopError:
    """The error of opening a session, which comes in seconds."""
    started = time.monotonic()
    with pytest.raises(TargetError) as caught, DeviceSession(profile):
        pass
    assert time.monotonic() - started < 20
    assert caught.value.exit_code == 4
    assert caught.value.hint
    return caught.value


def interpreter(path: Path, script: str) -> str:
    """A program of the board that stands where its Python is expected."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def spare(there: Board) -> Iterator[Path]:
    """The known hosts; put back afterwards."""
    before = there.known_hosts.read_text()
    yield there.known_hosts
    there.known_hosts.write_text(before)


def test_an_unknown_host_key_is_never_accepted(profile: TargetProfile, spare: Path) -> None:
    spare.write_text("")
    error = refusal(profile)
    assert "is not known to this machine yet" in str(error)
    assert error.hint.startswith("ssh board")
    assert spare.read_text() == ""


def test_a_changed_host_key_is_never_accepted(
    there: Board, profile: TargetProfile, spare: Path
) -> None:
    place = spare.read_text().split()[0]
    other = (there.folder / "key.pub").read_text().split()
    spare.write_text(f"{place} {other[0]} {other[1]}\n")
    error = refusal(profile)
    assert "another host key than before" in str(error)
    assert "ssh-keygen -R" in error.hint


def test_a_refused_key_says_how_to_bring_one(there: Board, profile: TargetProfile) -> None:
    keys = there.folder / "authorized_keys"
    before = keys.read_text()
    keys.write_text("")
    try:
        error = refusal(profile)
    finally:
        keys.write_text(before)
    assert "refuses your key" in str(error)
    assert error.hint == "ssh-copy-id board"


def test_a_python_that_is_not_there_is_named(profile: TargetProfile) -> None:
    error = refusal(replace(profile, python="/opt/python9/bin/python3"))
    assert "/opt/python9/bin/python3" in str(error)
    assert "python =" in error.hint


def test_a_python_that_is_too_old_is_named(
    there: Board, profile: TargetProfile, tmp_path: Path
) -> None:
    old = interpreter(
        tmp_path / "python-3.8",
        f'exec {there.python} -u -c \'import sys; sys.version_info = (3, 8, 10, "final", 0); '
        'sys.version = "3.8.10"; exec(eval(sys.stdin.readline()))\'',
    )
    error = refusal(replace(profile, python=old))
    assert "is Python 3.8.10, the worker needs 3.10 or newer" in str(error)


def test_a_xavier_is_told_apart_from_an_old_python(
    there: Board, profile: TargetProfile, tmp_path: Path
) -> None:
    old = interpreter(
        tmp_path / "python-3.8",
        f"exec {there.python} -u -c 'import builtins, io as text, sys; real = builtins.open; "
        'builtins.open = lambda name, *a, **k: text.StringIO("NVIDIA Jetson Xavier NX\\0") '
        'if name == "/proc/device-tree/model" else real(name, *a, **k); '
        'sys.version_info = (3, 8, 10, "final", 0); sys.version = "3.8.10"; '
        "exec(eval(sys.stdin.readline()))'",
    )
    error = refusal(replace(profile, python=old))
    assert "this is a NVIDIA Jetson Xavier NX" in str(error)
    assert "use an Orin or a Thor" in error.hint


def test_a_board_without_the_runtime_says_what_to_install(profile: TargetProfile) -> None:
    error = refusal(replace(profile, runtime="tensorrt"))
    assert "tensorrt" in str(error)
    assert "hwloop doctor" in error.hint


def test_a_python_without_numpy_says_what_to_install(
    profile: TargetProfile, tmp_path: Path
) -> None:
    bare = interpreter(tmp_path / "bare", 'exec /usr/bin/env python3 -I -S "$@"')
    error = refusal(replace(profile, python=bare))
    assert "numpy" in str(error)
    assert "pip install numpy onnxruntime" in error.hint


def test_a_shell_that_talks_is_named(there: Board, profile: TargetProfile, tmp_path: Path) -> None:
    noisy = interpreter(
        tmp_path / "noisy", f'echo "Welcome to this board"\nexec {there.python} "$@"'
    )
    assert "prints text before Python starts" in str(refusal(replace(profile, python=noisy)))


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-board.invalid"])
def test_a_board_that_is_not_there_ends_in_seconds(profile: TargetProfile, host: str) -> None:
    error = refusal(replace(profile, host=parse_host(host)))
    assert host.split(":")[0] in str(error)


def test_a_board_without_room_still_measures(
    there: Board, profile: TargetProfile, tmp_path: Path
) -> None:
    """The cache is a convenience: a folder that cannot be written costs nothing but itself."""
    there.cache.mkdir(parents=True, exist_ok=True)
    kept = there.cache / "replies"
    moved = there.cache / "aside"
    if kept.exists():
        kept.rename(moved)
    kept.write_text("in the way")
    try:
        with DeviceSession(profile) as session:
            assert session.state()["pid"] > 0
    finally:
        kept.unlink()
        if moved.exists():
            moved.rename(kept)


def test_the_command_ends_with_4_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "jetson-nowhere.toml"
    path.write_text('description = "x"\nruntime = "tensorrt"\ntransport = "ssh"\n')
    started = time.monotonic()
    said = hwloop("optimize", "--task", SPEC, "--target", path, "--run", tmp_path / "run")
    assert said.code == 4, said.err
    assert time.monotonic() - started < 20
    assert "jetson-nowhere" in said.err
    assert "fix:" in said.err
