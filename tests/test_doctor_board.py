"""The doctor on the target's machine: each line in each state, and what may not crash it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from examined import CPU, CUDA, ORIN, WORKER, board, host, only, there

from hwloop.measure.doctor.board import board_checks
from hwloop.parsing import to_json


@pytest.fixture
def nano(tmp_path: Path) -> dict[str, Any]:
    return board("orin_nano", tmp_path)


def test_a_board_in_order_has_no_complaint(tmp_path: Path) -> None:
    checks = there(board("agx_orin", tmp_path))
    assert {check.state for check in checks} == {"ok"}
    said = " / ".join(check.what for check in checks)
    for words in (
        "Jetson AGX Orin 64GB, JetPack 6.2 (L4T 36.4.3)",
        "power mode MODE_30W",
        "GPU clock 625 MHz of 625 MHz, locked",
        "memory clock at most 3199 MHz, locked",
        "53 degrees",
        "tensorrt 10.3.0",
        "nobody else measures there",
        "49.6 GiB of memory free",
    ):
        assert words in said


def test_there_are_many_lines(tmp_path: Path) -> None:
    facts = board("agx_orin", tmp_path)
    assert len(host(ORIN)) + len(there(facts)) >= 20


def test_free_clocks_are_a_warning_with_the_command_that_locks_them(nano: dict[str, Any]) -> None:
    check = only(there(nano), "not locked")
    assert check.state == "warn"
    assert "sudo jetson_clocks" in str(check.fix)


def test_clocks_that_cannot_be_read_are_not_called_locked(nano: dict[str, Any]) -> None:
    nano["jetson"]["gpu"]["locked"] = None
    assert only(there(nano), "cannot be read").state == "warn"
    assert only(there(nano), "memory clock").state == "ok"
    nano["jetson"]["emc"]["locked"] = False
    assert only(there(nano), "memory clock").state == "warn"


def test_a_power_mode_is_shown_by_name_and_its_absence_warned_of(nano: dict[str, Any]) -> None:
    assert only(there(nano), "power mode 25W").state == "ok"
    nano["jetson"]["power_mode"] = None
    assert only(there(nano), "power mode cannot be read").state == "warn"


def test_a_hot_and_slowed_board_is_a_warning(tmp_path: Path) -> None:
    checks = there(board("thor", tmp_path))
    assert only(checks, "92 degrees").state == "warn"
    assert only(checks, "gpu-throttle-alert is active").state == "warn"
    assert only(checks, "42 over-current events").state == "warn"


def test_a_cool_board_says_that_nothing_slows_it(nano: dict[str, Any]) -> None:
    assert only(there(nano), "no sign of being slowed down").state == "ok"
    nano["jetson"]["throttled"] = None
    assert not [check for check in there(nano) if "slowed" in check.what]


def test_little_memory_and_swap_in_memory_are_warnings(nano: dict[str, Any]) -> None:
    zram = only(there(nano), "compressed memory (zram) only")
    assert (zram.state, "nvzramconfig" in str(zram.fix)) == ("warn", True)
    nano["memory"].update(available_bytes=500 << 20, swap_total_bytes=0, zram_bytes=0)
    assert only(there(nano), "0.5 GiB of memory free, little").state == "warn"
    none = only(there(nano), "no swap")
    assert (none.state, "nvzramconfig" in str(none.fix)) == ("warn", False)
    nano["memory"].update(swap_total_bytes=8 << 30)
    assert only(there(nano), "8.0 GiB of swap").state == "ok"


def test_a_board_with_plenty_of_memory_needs_no_swap(tmp_path: Path) -> None:
    assert not [c for c in there(board("thor", tmp_path)) if "swap" in c.what]


@pytest.mark.parametrize(
    ("free", "state"), [(20 << 30, "ok"), (1 << 30, "warn"), (1 << 20, "fail")]
)
def test_room_there(nano: dict[str, Any], free: int, state: str) -> None:
    nano["disk"] = {"free_bytes": free}
    assert only(there(nano), "home folder there").state == state


def test_a_busy_board_is_a_warning_and_a_locked_one_a_failure(nano: dict[str, Any]) -> None:
    assert only(there({**nano, "load_average": 5.0}), "on 6 cores").state == "warn"
    assert only(there({**nano, "lock": "ada, 4711"}), "measures there: ada, 4711").state == "fail"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("python", "3.8.10", "Python 3.8.10: 3.10 is needed"), ("numpy", None, "no numpy there")],
)
def test_a_worker_that_lacks_something_fails(
    nano: dict[str, Any], key: str, value: Any, said: str
) -> None:
    check = only(there({**nano, key: value}), said)
    assert check.state == "fail"
    assert check.fix


def test_a_tensorrt_from_the_future_is_a_warning(nano: dict[str, Any]) -> None:
    assert only(there({**nano, "runtime_version": "12.1"}), "tensorrt 12.1").state == "warn"


def card(**changes: Any) -> dict[str, Any]:
    gpu = {
        "name": "RTX 4070",
        "driver": "580.1",
        "pstate": "P2",
        "sm_mhz": 2000,
        "sm_max_mhz": 3105,
        "temperature_c": 60,
        "throttle_reasons": [],
        "utilization_pct": 0,
        "count": 1,
    }
    return {**WORKER, "jetson": None, "gpu": {**gpu, **changes}, "temperature_c": 40.0}


def test_a_graphics_card_in_order_has_no_complaint() -> None:
    checks = there(card(), CUDA)
    assert {check.state for check in checks} == {"ok"}
    assert only(checks, "RTX 4070, driver 580.1")
    assert "nvidia-smi -lgc" in only(checks, "GPU clock 2000 MHz of 3105 MHz, state P2").what


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"throttle_reasons": ["power cap"]}, "slowed down now: power cap"),
        ({"temperature_c": 90}, "90 degrees"),
        ({"count": 2}, "2 GPUs"),
        ({"note": "which GPU it is is not known: set CUDA_DEVICE_ORDER"}, "is not known"),
        ({"utilization_pct": 55}, "something else uses the GPU (55 %)"),
    ],
)
def test_what_is_wrong_with_a_graphics_card_is_a_warning(changes: Any, said: str) -> None:
    check = only(there(card(**changes), CUDA), said)
    assert check.state == "warn"
    assert check.fix


def test_a_gpu_that_one_process_may_have_is_a_failure_with_the_command_that_shares_it() -> None:
    check = only(there(card(compute_mode="Exclusive_Process"), CUDA), "Exclusive_Process")
    assert (check.state, "nvidia-smi -c DEFAULT" in str(check.fix)) == ("fail", True)
    for fine in ("Default", None):
        assert not [c for c in there(card(compute_mode=fine), CUDA) if c.state != "ok"]


@pytest.mark.parametrize(
    ("governor", "state"), [("performance", "ok"), ("unknown", "ok"), ("powersave", "warn")]
)
def test_a_cpu_target_looks_at_its_governor(governor: str, state: str) -> None:
    facts = {**WORKER, "cpu": "EPYC", "governor": governor, "runtime": "onnxruntime"}
    assert only(there(facts, CPU), "CPU governor").state == state


# -------------------------------------------------------------------------- hostile boards


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"jetson": 3, "gpu": "x", "memory": [], "disk": None, "load_average": "a", "cores": 0},
        {"jetson": {"gpu": 1, "emc": None, "throttle_reasons": "no", "l4t": 36, "soc": ["x"]}},
        {"gpu": {"throttle_reasons": [1, None], "count": True}, "temperature_c": "hot"},
        {"python": "", "numpy": 3, "runtime": "tensorrt", "runtime_version": "?", "lock": 5},
    ],
)
def test_nonsense_of_a_board_is_no_crash(facts: dict[str, Any]) -> None:
    for profile in (CPU, CUDA, ORIN):
        assert json.dumps(to_json(board_checks(profile, facts)))


def test_what_a_board_says_cannot_steer_the_terminal(nano: dict[str, Any]) -> None:
    nano["jetson"]["module"] = "\x1b[2J\u202e" + "x" * 10_000
    nano["lock"] = "ada\r\nok    all is well"
    for check in there(nano):
        assert check.what.isprintable()
        assert len(check.what) < 500
