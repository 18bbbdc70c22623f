"""``hwloop doctor`` as a command: what it reads, builds and packs, and what it refuses to do."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from played_board import PlayedBoard
from tiny import inside, is_refused

from hwloop.errors import EnvironmentProblem, TargetError
from hwloop.measure import session as targets
from hwloop.measure.doctor import bundle
from hwloop.measure.doctor.check import Visit
from hwloop.measure.doctor.scrub import Scrubber
from hwloop.measure.profile_file import load_profile
from hwloop.runtimes.rowkinds import INT8_KINDS

Capsys = pytest.CaptureFixture[str]
FIVE = ("imports numpy", "empty row", "kinds of INT8 rows", "layers only change", "W idle")


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlayedBoard:
    """Every session of the doctor is one with this board."""
    made = PlayedBoard(tmp_path / "board")
    monkeypatch.setattr(targets, "DeviceSession", lambda profile: made)
    return made


def packed(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        texts = {name.partition("/")[2]: archive.read(name).decode() for name in archive.namelist()}
    return {
        name: json.loads(text) if name.endswith(".json") else text for name, text in texts.items()
    }


# ------------------------------------------------------------------------------- examining


def test_a_board_is_read_first_and_then_given_engines_to_build(
    played: PlayedBoard, capsys: Capsys
) -> None:
    said = inside(capsys, "doctor", "--target", "jetson-orin")
    lines = said.out.splitlines()
    places = [next(i for i, line in enumerate(lines) if words in line) for words in FIVE]
    assert places == sorted(places)
    assert next(i for i, line in enumerate(lines) if "power mode 25W" in line) < places[0]
    assert len(played.built) == len(INT8_KINDS)
    assert (played.opened, played.closed) == (1, 1)
    # What goes on and how long it takes is told meanwhile, and is no part of the result.
    assert "--quick" in said.err
    assert "3/5 every kind of INT8 row is built" in said.err
    assert "--quick" not in said.out


def test_quick_only_reads(played: PlayedBoard, capsys: Capsys) -> None:
    said = inside(capsys, "doctor", "--target", "jetson-orin", "--quick")
    assert "power mode 25W" in said.out
    assert not [words for words in FIVE if words in said.out]
    assert played.built == []


def test_a_target_that_has_no_engines_is_only_read(capsys: Capsys) -> None:
    said = inside(capsys, "doctor", "--target", "fake")
    assert "numpy" in said.out
    assert not [words for words in FIVE if words in said.out]


def test_json_is_a_list_of_lines_whatever_is_told_meanwhile(
    played: PlayedBoard, capsys: Capsys
) -> None:
    found = json.loads(inside(capsys, "doctor", "--target", "jetson-orin", "--json").out)
    assert {tuple(sorted(item)) for item in found} == {("fix", "state", "what")}


def test_a_board_that_stops_at_an_old_jetpack_builds_nothing(
    played: PlayedBoard, capsys: Capsys
) -> None:
    release = "# R35 (release), REVISION: 4.1, GCID: 1, BOARD: generic\n"
    (played.root / "etc/nv_tegra_release").write_text(release)
    said = inside(capsys, "doctor", "--target", "jetson-orin")
    assert said.code == 5
    assert "update to JetPack 6.1" in said.out
    assert played.built == []


def test_a_board_without_the_runtime_is_told_what_fits_it(
    played: PlayedBoard, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    message = "target 'jetson-orin': No module named 'tensorrt'; JetPack's belongs to x"

    def session(profile: Any) -> PlayedBoard:
        if profile.runtime == "tensorrt":
            raise TargetError(message, "a hint")
        return played

    monkeypatch.setattr(targets, "DeviceSession", session)
    path = tmp_path / "orin.zip"
    said = inside(capsys, "doctor", "--target", "jetson-orin", "--bundle", path)
    assert said.code == 5
    assert "fix: on the board: sudo apt install python3-libnvinfer" in said.out
    assert "power mode 25W" in said.out
    inside_it = packed(path)
    assert "etc/nvpmodel.conf" in inside_it["recordings.json"]["files"]
    assert "results.json" not in inside_it


def test_without_a_target_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, atexit; atexit.register(lambda: print(sorted({'torch', 'onnx', 'numpy'} & "
        "set(sys.modules)), file=sys.stderr)); sys.argv = ['hwloop', 'doctor']; "
        "from hwloop.cli import run; run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (0, 5)
    assert "torch" not in done.stderr


# --------------------------------------------------------------------------------- packing


def test_a_bundle_holds_what_was_seen_and_says_so(
    played: PlayedBoard, capsys: Capsys, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "report.json").write_text(json.dumps({"best": {"latency_ms": 1.5}}))
    path = tmp_path / "orin.zip"
    said = inside(capsys, "doctor", "--target", "jetson-orin", "--bundle", path, "--run", run)
    found = packed(path)
    assert set(found) == {"README.txt", *bundle.MEANING}
    (line,) = [line for line in said.out.splitlines() if "packed" in line]
    for name in bundle.MEANING:
        assert name in line
        assert name in found["README.txt"]
    assert bundle.LEFT_OUT in line
    assert found["target.json"]["fingerprint"]["runtime"] == "tensorrt"
    assert found["state.json"]["jetson"]["power_mode"] == "25W"
    assert set(found["results.json"]) == {"import", "launch_floor", "int8_kinds", "layers", "power"}
    assert found["recordings.json"]["files"]["var/lib/nvpmodel/status"].startswith("pmode:0001")
    assert found["report.json"] == {"best": {"latency_ms": 1.5}}
    assert len(found["checks.json"]) > 30
    assert found["versions.json"]["packages"]["numpy"]


def test_equal_findings_are_equal_bundles(tmp_path: Path) -> None:
    visit = Visit(checks=(), state={"cores": 4})
    for name in ("a.zip", "b.zip"):
        bundle.write_bundle(tmp_path / name, visit, profile=load_profile("cpu"))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip"]


def test_what_identifies_somebody_is_in_no_part_of_a_bundle(
    played: PlayedBoard, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, there = {"host": "lovelace-desk", "user": "ada"}, {"host": "rover7", "user": "grace"}
    monkeypatch.setattr(socket, "gethostname", lambda: f"{here['host']}.lab.example")
    monkeypatch.setattr(getpass, "getuser", lambda: here["user"])
    recorded = {**played.recordings(), "names": list(there.values())}
    serial, mac, uuid = "1421022061325", "48:b0:2d:5c:01:fe", "8f1c2d3e-1111-2222-3333-445566778899"
    recorded["files"]["proc/swaps"] = "Filename\n/home/grace/swapfile file 1 0 -2\n"
    recorded["files"]["proc/cpuinfo"] = f"processor: 0\nSerial : {serial}\n"
    monkeypatch.setattr(played, "recordings", lambda: recorded)
    played.refuses = {
        "linear": f"ada on rover7 (grace@10.1.2.3, 192.168.1.7, {mac}) at /home/ada/x"
    }
    state = played.state()
    more = {"disk": {"path": "/home/grace", "free_bytes": 1 << 40}, "serial_number": serial}
    more["gpu"] = {"uuid": f"GPU-{uuid}", "name": "Orin"}
    monkeypatch.setattr(played, "state", lambda: {**state, **more})
    run = tmp_path / "run"
    run.mkdir()
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFake"
    report = {"command": "hwloop optimize --host ada@lovelace-desk /home/ada/m.py", "note": key}
    (run / "report.json").write_text(json.dumps({**report, "host": "rover7", "user": "ada"}))
    path = tmp_path / "orin.zip"
    asked = ("--target", "jetson-orin", "--host", "grace@10.1.2.3", "--bundle", path, "--run", run)
    said = inside(capsys, "doctor", *asked)
    assert said.code in (0, 5), said.err
    text = json.dumps(packed(path))
    for secret in (*here.values(), *there.values(), serial, mac, uuid, "10.1.2.3", "192.168.1.7"):
        assert secret.lower() not in text.lower(), secret
    assert "AAAAC3" not in text
    # What is needed is still there.
    found = packed(path)
    assert found["recordings.json"]["files"]["proc/device-tree/compatible"].endswith("tegra234\0")
    assert found["state.json"]["disk"] == {"free_bytes": 1 << 40}
    assert found["state.json"]["gpu"] == {"name": "Orin"}
    assert "hwloop optimize" in found["report.json"]["command"]


@pytest.mark.parametrize(
    "text",
    [
        "tensorrt 10.13.3.9 and 10.16.1.11",
        "RAM 2448/7620MB CPU [2%@729,off] cpu@49.5C tj@50.1C VDD_IN 4984mW/4984mW",
        "nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234\0",
        "/sys/devices/platform/bus@0/17000000.gpu/devfreq/17000000.gpu",
        "3199000000",
    ],
)
def test_what_identifies_nobody_is_left_as_it_is(text: str) -> None:
    scrubber = Scrubber({"nvidia", "ubuntu", "x", "", "somebody"})
    assert scrubber.recorded(text) == text
    assert scrubber.text(text) == text


@pytest.mark.parametrize(
    "sent",
    [
        None,
        3,
        {"files": 3, "tegrastats": "x", "names": 5},
        {"files": dict.fromkeys(("../../etc/passwd", "/etc/passwd", "etc/shadow", "b\n"), "x")},
        {"files": {"proc/meminfo": 3, "sys/class/hwmon/../../secret/name": "x"}},
        {
            "files": {f"sys/class/hwmon/hwmon{i}/name": "x" for i in range(5000)},
            "tegrastats": ["x" * 10**6] * 100,
        },
    ],
)
def test_nonsense_among_the_recordings_is_not_packed(sent: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    bundle.write_bundle(path, Visit(checks=(), recordings=sent), profile=load_profile("cpu"))
    found = packed(path).get("recordings.json", {"files": {}, "tegrastats": []})
    assert all(path.startswith("sys/class/hwmon/hwmon") for path in found["files"])
    assert len(json.dumps(found)) < 2 << 20


def test_recordings_that_cannot_be_had_are_a_line(
    played: PlayedBoard, capsys: Capsys, tmp_path: Path
) -> None:
    played.lost_in = "recordings"
    path = tmp_path / "orin.zip"
    said = inside(capsys, "doctor", "--target", "jetson-orin", "--quick", "--bundle", path)
    assert "could not be recorded: the board is gone" in said.out
    assert "recordings.json" not in packed(path)


def test_a_target_that_cannot_be_reached_is_packed_too(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def session(profile: Any) -> Any:
        raise EnvironmentProblem("target 'cuda': no driver", "install one")

    monkeypatch.setattr(targets, "DeviceSession", session)
    path = tmp_path / "cuda.zip"
    said = inside(capsys, "doctor", "--target", "cuda", "--bundle", path)
    assert said.code == 5
    assert "no driver" in json.dumps(packed(path)["checks.json"])


# -------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--bundle", "x.zip"), ("--bundle is about a target",)),
        (("--host", "me@board"), ("--host is about a target",)),
        (("--target", "fake", "--run", "r"), ("--run is about a bundle", "--bundle FILE.zip")),
        (("--target", "fake", "--bundle", "x.tar.gz"), ("a bundle is a zip",)),
        (("--target", "fake", "--bundle", "none/x.zip"), ("cannot be written",)),
        (("--target", "fake", "--bundle", "x.zip", "--run", "none"), ("report",)),
    ],
)
def test_mistakes_are_refused_before_anything_is_examined(
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
    capsys: Capsys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HWLOOP_TARGET", raising=False)
    is_refused(inside(capsys, "doctor", *arguments), *parts)
    assert list(tmp_path.iterdir()) == []


def test_profiles_with_short_deadlines_keep_them(
    played: PlayedBoard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capsys
) -> None:
    seen: list[float] = []

    def session(profile: Any) -> PlayedBoard:
        seen.append(profile.build_timeout_s)
        return played

    monkeypatch.setattr(targets, "DeviceSession", session)
    inside(capsys, "doctor", "--target", "jetson-orin", "--quick")
    short = replace(load_profile("jetson-orin"), build_timeout_s=40.0)
    monkeypatch.setattr("hwloop.measure.profile_file.resolve", lambda name, host=None: short)
    inside(capsys, "doctor", "--target", "jetson-orin", "--quick")
    assert seen == [300.0, 40.0]
