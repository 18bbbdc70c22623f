"""Hosts: what may reach ssh, and that nothing else ever does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import inside

import hwloop
from hwloop.errors import UsageError
from hwloop.measure.hosts import Host, check_python, parse_host
from hwloop.measure.profile_file import load_profile, resolve
from hwloop.measure.transport import ssh_command

HOSTILE = [
    "",
    " ",
    "-oProxyCommand=touch pwned",
    "-l",
    "--",
    "-",
    "--help",
    "-F/tmp/config",
    "-E/tmp/log",
    "@",
    "@host",
    "user@",
    "user@-oProxyCommand=id",
    "-user@host",
    "us er@host",
    "user@ho st",
    "user@host ",
    " user@host",
    "user@host\n",
    "user@host\ntouch pwned",
    "user@host\r",
    "user@host\t-v",
    "host\x00",
    "host`id`",
    "host$(id)",
    "host${IFS}id",
    "host;id",
    "host|id",
    "host&id",
    "host&&id",
    "host>file",
    "host<file",
    "host'id'",
    'host"id"',
    "host\\id",
    "host#x",
    "host*",
    "host?",
    "host!x",
    "~/host",
    "/etc/passwd",
    "../host",
    "host/path",
    "ssh://",
    "ssh://-oProxyCommand=id",
    "ssh://user@host/path",
    "ssh://user@host?x=1",
    "ssh://user:password@host",
    "ssh://ssh://host",
    "http://host",
    "user@host@other",
    "$(id)@host",
    "`id`@host",
    "user;id@host",
    "user%h@host",
    "host%h",
    "host:",
    "host:0",
    "host:65536",
    "host:22 -v",
    "host:-22",
    "host:2a",
    "host:22:22",
    "[::1",
    "[::1]x",
    "[::1]:",
    "[host]:22",
    "::1%eth0",
    "[fe80::1%$(id)]",
    "hôst",
    "host\u2028",
    "h" * 300,
    "python3=x//ssh=y",
    "host//python=/tmp/evil",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_not_plainly_a_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no host"):
        parse_host(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_profile_can_bring_one_in(text: str, tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    quoted = text.encode("unicode_escape").decode().replace('"', '\\"').replace("\\x", "\\u00")
    path.write_text(
        f'description = "x"\nruntime = "onnxruntime"\ntransport = "ssh"\nhost = "{quoted}"\n',
        encoding="utf-8",
    )
    with pytest.raises(UsageError):
        load_profile(str(path))


def test_no_file_name_can_bring_one_in(tmp_path: Path) -> None:
    path = tmp_path / "-oProxyCommand=id.toml"
    path.write_text('description = "x"\nruntime = "onnxruntime"\ntransport = "ssh"\n')
    with pytest.raises(UsageError, match="is no host"):
        load_profile(str(path))


@pytest.mark.parametrize("python", ["-c", "python3 -c x", "py;id", "$(id)", "py\n", "", "a'b"])
def test_no_interpreter_can_bring_one_in(python: str) -> None:
    with pytest.raises(UsageError, match="no path of a Python"):
        check_python(python)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_option_can_bring_one_in(capsys: pytest.CaptureFixture[str], text: str) -> None:
    said = inside(capsys, "target", "check", "cpu", f"--host={text}")
    assert said.code == 2
    assert "is no host" in said.err


@pytest.mark.parametrize("text", HOSTILE)
def test_no_call_can_bring_one_in(text: str) -> None:
    with pytest.raises(UsageError, match="is no host"):
        hwloop.bench("x.onnx", target="cpu", host=text)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_target_name_can_bring_one_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    if "\0" in text:
        pytest.skip("no environment can hold a NUL")
    monkeypatch.setenv("HWLOOP_TARGET", text or " ")
    said = inside(capsys, "bench", "x.onnx")
    assert said.code == 2
    assert "unknown target" in said.err


COMMANDS = [
    ("optimize", "--target", "cpu"),
    ("optimize", "--dry-run"),
    ("bench", "x.onnx"),
    ("table", "build"),
    ("table", "check"),
    ("target", "check", "cpu"),
    ("doctor", "--target", "cpu"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("host", ["-oProxyCommand=touch pwned", "h$(touch pwned)", "h\nid"])
def test_every_command_refuses_it_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: tuple[str, ...],
    host: str,
) -> None:
    called = tmp_path / "called"
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f"#!/bin/sh\ntouch {called}\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=":")
    monkeypatch.chdir(tmp_path)
    said = inside(capsys, *command, f"--host={host}")
    assert said.code == 2, said.err
    assert "is no host" in said.err
    assert not called.exists()
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jetson-orin", Host(name="jetson-orin")),
        ("me@board", Host(name="board", user="me")),
        ("me@board.local:2222", Host(name="board.local", user="me", port=2222)),
        ("ssh://me@192.168.1.7:22", Host(name="192.168.1.7", user="me", port=22)),
        ("ssh://board", Host(name="board")),
        ("::1", Host(name="::1")),
        ("me@[fe80::1]:22", Host(name="fe80::1", user="me", port=22)),
        ("[::1]", Host(name="::1")),
        ("a_b-c.d", Host(name="a_b-c.d")),
    ],
)
def test_hosts_are_read_as_ssh_reads_them(text: str, expected: Host) -> None:
    assert parse_host(text) == expected
    assert parse_host(str(expected)) == expected


def test_the_host_is_the_last_word_before_the_command(tmp_path: Path) -> None:
    profile = resolve("cpu", host="me@board:2222")
    command = ssh_command(profile, tmp_path / "log")
    assert command[command.index("--") + 1] == "me@board"
    assert command[command.index("-p") + 1] == "2222"
    assert "BatchMode=yes" in command
    assert not [word for word in command if "StrictHostKeyChecking" in word]
