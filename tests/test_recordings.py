"""A board as files: what is read of it, that it is enough for a test, and what is left out."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from test_jetson import plant

from hwloop.device import jetson, power
from hwloop.device.recordings import MAX_FILE_BYTES, recordings

BOARDS = ("orin_nano", "agx_orin", "thor")


@pytest.mark.parametrize("name", BOARDS)
def test_a_recording_is_the_same_board_to_whoever_reads_it(name: str, tmp_path: Path) -> None:
    board, again = plant(name, tmp_path / "board"), tmp_path / "again"
    for path, text in recordings(board)["files"].items():
        (again / path).parent.mkdir(parents=True, exist_ok=True)
        (again / path).write_text(text)
    assert jetson.snapshot(again) == jetson.snapshot(board)
    assert power.rails_mw(again) == power.rails_mw(board)


def test_what_names_a_board_or_a_person_is_not_read(tmp_path: Path) -> None:
    secret = "1421022061325"  # noqa: S105
    root = plant(
        "orin_nano",
        tmp_path,
        **{
            "proc/device-tree/serial-number": secret,
            "etc/hostname": secret,
            "sys/class/net/eth0/address": secret,
            "home/ada/.ssh/id_ed25519": secret,
            "proc/cpuinfo": f"processor : 0\nSerial\t\t: {secret}\nHardware : Orin\n",
        },
    )
    found = recordings(root)
    assert secret not in str(found)
    assert found["files"]["proc/cpuinfo"] == "processor : 0\nHardware : Orin\n"


def test_where_there_is_no_board_there_are_no_files(tmp_path: Path) -> None:
    found = recordings(tmp_path)
    assert (found["files"], found["tegrastats"]) == ({}, [])
    assert os.uname().nodename in found["names"]


def test_a_file_that_is_large_or_waits_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvpmodel.conf").write_text("x" * (MAX_FILE_BYTES + 1))
    os.mkfifo(tmp_path / "etc/nv_tegra_release")
    found = recordings(tmp_path)["files"]
    assert len(found["etc/nvpmodel.conf"]) == MAX_FILE_BYTES
    assert not found.get("etc/nv_tegra_release")


def tool(root: Path, script: str) -> Path:
    path = root / "usr/bin/tegrastats"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return root


def test_whole_lines_of_a_tool_that_never_ends_are_taken(tmp_path: Path) -> None:
    line = "RAM 2448/7620MB VDD_IN 4984mW/4984mW"
    root = tool(tmp_path, f'echo "{line}"; echo "{line}"; printf half; exec sleep 60')
    started = time.monotonic()
    assert power.tegrastats_lines(root, count=3, every_ms=1000, timeout_s=1.0) == [line, line]
    assert time.monotonic() - started < 10


def test_no_more_than_three_lines_are_taken(tmp_path: Path) -> None:
    root = tool(tmp_path, "for i in 1 2 3 4 5; do echo $i; done")
    assert recordings(root)["tegrastats"] == ["1", "2", "3"]
