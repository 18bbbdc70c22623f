"""Machines that cannot work, and workers that do not start: why, and what helps there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from examined import CPU, CUDA, ORIN, WORKER, board, only, there

from hwloop.measure.doctor.board import unsupported_reason
from hwloop.measure.doctor.start import start_check


@pytest.fixture
def nano(tmp_path: Path) -> dict[str, Any]:
    return board("orin_nano", tmp_path)


@pytest.mark.parametrize(
    ("soc", "l4t", "said", "fix"),
    [
        ("tegra194", "35.4.1", "Xavier stops at JetPack 5", "use an Orin"),
        ("tegra186", "32.7.1", "TX2 stops at JetPack 4", "use an Orin"),
        ("tegra210", "32.7.1", "Nano or TX1 stops at JetPack 4", "use an Orin"),
        ("tegra234", "35.4.1", "JetPack 5.1.2 (L4T 35.4.1) brings TensorRT 8", "JetPack 6.1"),
        ("tegra234", "36.3.0", "JetPack 6.0 (L4T 36.3.0) brings TensorRT 8", "JetPack 6.1"),
    ],
)
def test_a_board_that_cannot_work_is_told_why_and_what_to_do(
    nano: dict[str, Any], soc: str, l4t: str, said: str, fix: str
) -> None:
    from hwloop.device import jetson

    nano["jetson"].update(
        soc=soc,
        soc_name=jetson.SOCS[soc],
        l4t=l4t,
        jetpack=jetson.JETPACKS.get(l4t.removesuffix(".0")),
    )
    reason = unsupported_reason(nano)
    assert reason is not None
    assert said in reason
    check = only(there(nano), said)
    assert check.state == "fail"
    assert fix in str(check.fix)


@pytest.mark.parametrize("l4t", ["36.4.0", "36.4.7", "36.5.0", "38.2.0", "39.2.1", None])
def test_what_should_work_is_not_refused(nano: dict[str, Any], l4t: str | None) -> None:
    nano["jetson"]["l4t"] = l4t
    assert unsupported_reason(nano) is None


def test_an_old_tensorrt_on_another_machine_is_refused_too() -> None:
    reason = unsupported_reason({**WORKER, "runtime_version": "8.6.1"})
    assert reason is not None
    assert "TensorRT 8.6.1" in reason
    assert unsupported_reason({**WORKER, "runtime": "onnxruntime"}) is None


def test_an_old_board_may_still_run_onnx_runtime(tmp_path: Path) -> None:
    facts = board("xavier_nx", tmp_path, runtime="onnxruntime", runtime_version="1.23.2")
    assert not [check for check in there(facts, CPU) if check.state == "fail"]


# ---------------------------------------------------------------- a worker that does not start


START = "TensorRT cannot be imported: No module named 'tensorrt'"
DESKTOP = {"jetson": None, "gpu": {"driver": "550.54.15"}, "machine": "x86_64"}


@pytest.mark.parametrize(
    ("message", "board_fix", "local_fix"),
    [
        (f"{START}; JetPack's belongs to x", "apt install", '"hwloop[tensorrt-cu12]"'),
        ("TensorRT 10.0 is too old, 10.3 is the oldest; x", "JetPack 6.1", "[tensorrt-cu12]"),
        ("ModuleNotFoundError: No module named 'numpy'", "install python3-numpy", "pip install"),
        ("no way to CUDA (cuda-bindings: No module named 'cuda')", "nvidia-cuda", "bindings<13"),
        ("no way to CUDA (driver version is insufficient for CUDA runtime version)", "JetPack", ""),
        ("something else; and more", "the hint", "the hint"),
    ],
)
def test_a_worker_that_does_not_start_gets_the_fix_for_what_it_lacks(
    message: str, board_fix: str, local_fix: str, nano: dict[str, Any]
) -> None:
    for profile, fix, state_ in ((ORIN, board_fix, nano), (CUDA, local_fix, DESKTOP)):
        check = start_check(profile, message, "the hint", state_)
        assert check.state == "fail"
        assert message.startswith(check.what)
        assert fix in str(check.fix)
        # Nobody is told to do on one kind of machine what helps on the other alone.
        on_board = "tensorrt-cu" in str(check.fix) or "hwloop[" in str(check.fix)
        assert not (on_board if profile is ORIN else "JetPack" in f"{check.what} {check.fix}")


def test_every_reason_is_kept_and_the_advice_for_other_machines_is_not() -> None:
    reasons = "no way to CUDA (cuda-bindings: not there; cudart: CUDA 11.4 is too old)"
    check = start_check(CUDA, f"{reasons}; install JetPack's CUDA (or x)", "", DESKTOP)
    assert check.what == reasons
    plain = start_check(CUDA, f"{START}; JetPack's belongs to (x), elsewhere: y", "", DESKTOP)
    assert plain.what == START


def test_without_a_word_of_the_machine_a_board_is_taken_for_a_jetson() -> None:
    check = start_check(ORIN, f"{START}; x", "the hint")
    assert "python3-libnvinfer" in str(check.fix)
    assert "pip" not in str(check.fix)


@pytest.mark.parametrize(
    ("driver", "advice"),
    [
        ("580.65.06", '"hwloop[tensorrt]"'),
        ("595.1", '"hwloop[tensorrt]"'),
        ("550.54.15", '"hwloop[tensorrt-cu12]"'),
        ("525.60.13", '"hwloop[tensorrt-cu12]"'),
        ("470.1", "update NVIDIA's driver"),
        (None, "hwloop[tensorrt-cu12]"),
    ],
)
def test_the_driver_decides_which_wheel_is_named(driver: str | None, advice: str) -> None:
    state_ = {"jetson": None, "gpu": {"driver": driver}, "machine": "x86_64"}
    assert advice in str(start_check(CUDA, START, "", state_).fix)


def test_a_desktop_behind_ssh_gets_the_wheel_for_its_driver_and_not_jetpacks() -> None:
    far = replace(CUDA, transport="ssh", python="/opt/venv/bin/python")
    check = start_check(far, START, "", DESKTOP)
    assert check.fix == 'there: /opt/venv/bin/python -m pip install "tensorrt-cu12>=10.13,<12"'
    arm = {**DESKTOP, "machine": "aarch64"}
    assert "apt" in str(start_check(far, START, "", arm).fix)
