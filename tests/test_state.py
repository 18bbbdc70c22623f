"""The state of a machine: its snapshot, what belongs into a fingerprint, and nvidia-smi."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_jetson import BOARDS, plant

from hwloop.device import nvidia_smi, state

GPU = (
    "NVIDIA GeForce RTX 4070, GPU-11aa, 580.95.05, P2, Default, "
    "0, 2475, 3105, 10251, 10501, 61, 187.43, 200.00, 12282, 911, 98"
)
OLD = (
    "Quadro, [N/A], 470.1, N/A, [N/A], 1, "
    "[N/A], [Not Supported], N/A, , 40, [N/A], [N/A], 4096, 0, 0"
)


def answers(*replies: str | Exception) -> tuple[nvidia_smi.Ask, list[list[str]]]:
    asked: list[list[str]] = []

    def ask(command: Sequence[str]) -> str:
        asked.append(list(command))
        reply = replies[len(asked) - 1]
        if isinstance(reply, Exception):
            raise reply
        return reply

    return ask, asked


REFUSED = subprocess.CalledProcessError(2, "nvidia-smi")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 UTC 2024\n"
            "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n",
            "550.54.15",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n",
            "580.95.05",
        ),
    ],
)
def test_figures_of_two_drivers_are_kept_apart(text: str, version: str, tmp_path: Path) -> None:
    assert state.fingerprint_settings(tmp_path) == []
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(text)
    assert state.fingerprint_settings(tmp_path) == [["driver", version]]


def test_the_snapshot_of_this_machine_is_plain_json_and_quick() -> None:
    found = state.snapshot()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] >= 1
    assert found["memory"]["available_bytes"] > 0
    assert found["disk"]["free_bytes"] > 0
    assert {"cpu", "isa", "machine", "governor", "temperature_c", "load_average"} < set(found)


def test_the_snapshot_of_a_board_has_its_jetson_and_no_gpu_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An Orin has an nvidia-smi, which knows next to nothing.
    monkeypatch.setattr(nvidia_smi, "snapshot", lambda: {"name": "Orin (nvgpu)"})
    found = state.snapshot(plant("orin_nano", tmp_path))
    assert found["isa"] == "asimd+asimddp"
    assert found["governor"] == "schedutil"
    assert found["temperature_c"] == 49.625
    assert found["jetson"]["module"] == "Orin Nano 8GB"
    assert found["jetson"]["rails_mw"]["VDD_IN"] == pytest.approx(4984 * 1856 / 1000)
    assert found["gpu"] is None
    assert json.loads(json.dumps(found)) == found


def test_memory_tells_swap_on_disk_from_swap_in_memory(tmp_path: Path) -> None:
    nano = state.memory(plant("orin_nano", tmp_path / "nano"))
    assert nano["available_bytes"] == 5242880 * 1024
    assert nano["swap_total_bytes"] == nano["zram_bytes"] == 6 * 650176 * 1024
    agx = state.memory(plant("agx_orin", tmp_path / "agx"))
    assert (agx["swap_total_bytes"], agx["zram_bytes"]) == (40000000 * 1024, 0)


def test_memory_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    found = state.memory(tmp_path)
    assert (found["total_bytes"], found["available_bytes"]) == (None, None)


def test_the_cache_beyond_which_weights_are_slow_is_the_second_level(tmp_path: Path) -> None:
    assert state.cache_bytes(tmp_path) is None
    for index, (level, size) in enumerate(
        [("1", "48K"), ("1", "32K"), ("2", "512K"), ("3", "32M")]
    ):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    assert state.cache_bytes(tmp_path) == 512 * 1024


def test_a_fingerprint_names_module_system_mode_and_caps(tmp_path: Path) -> None:
    assert state.fingerprint_settings(plant("orin_nano", tmp_path)) == [
        ["module", "Orin Nano 8GB"],
        ["l4t", "36.4.7"],
        ["power_mode", "25W"],
        ["gpu_max_mhz", "918"],
        ["emc_max_mhz", "3199"],
    ]


def test_another_power_mode_is_another_fingerprint(tmp_path: Path) -> None:
    before = state.fingerprint_settings(plant("orin_nano", tmp_path / "a"))
    changes = {
        "var/lib/nvpmodel/status": "pmode:0000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "612000000\n",
        "sys/kernel/nvpmodel_clk_cap/emc": "2133000000\n",
    }
    after = dict(state.fingerprint_settings(plant("orin_nano", tmp_path / "b", **changes)))
    changed = {key for key, value in before if after[key] != value}
    assert changed == {"power_mode", "gpu_max_mhz", "emc_max_mhz"}


def test_load_heat_and_the_present_clock_are_no_part_of_a_fingerprint(tmp_path: Path) -> None:
    before = state.fingerprint_settings(plant("orin_nano", tmp_path / "a"))
    changes = {
        "sys/class/devfreq/17000000.gpu/cur_freq": "918000000\n",
        "sys/class/devfreq/17000000.gpu/min_freq": "918000000\n",  # jetson_clocks
        "sys/class/thermal/thermal_zone1/temp": "80000\n",
    }
    assert state.fingerprint_settings(plant("orin_nano", tmp_path / "b", **changes)) == before


def test_what_a_board_hides_is_unknown_in_its_fingerprint(tmp_path: Path) -> None:
    found = dict(state.fingerprint_settings(plant("container", tmp_path)))
    assert found == {
        "module": "unknown",
        "l4t": "36.4.4",
        "power_mode": "unknown",
        "gpu_max_mhz": "unknown",
        "emc_max_mhz": "unknown",
    }


def test_a_machine_that_is_no_jetson_adds_nothing_to_a_fingerprint(tmp_path: Path) -> None:
    assert state.fingerprint_settings(tmp_path) == []


@pytest.mark.parametrize("name", BOARDS)
def test_a_missing_or_broken_file_costs_its_figure_and_nothing_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia_smi, "COMMAND", "absent")
    root = plant(name, tmp_path)
    for path in [path for path in root.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for broken in (
            b"",
            b"\0\xff zram MemTotal: kB -1 99999999999999999999999999",
            b"zram\nzram",
        ):
            path.write_bytes(broken)
            found = state.snapshot(root)
            assert json.loads(json.dumps(found)) == found
        path.unlink()
        assert state.snapshot(root)["cores"] >= 1
        path.write_bytes(whole)


# ------------------------------------------------------------------------------ nvidia-smi


def test_a_graphics_card_is_read_with_why_it_is_slow() -> None:
    ask, asked = answers(f"{GPU}, 0x0000000000000024\n")
    found = nvidia_smi.snapshot(ask, {})
    assert found == {
        "name": "NVIDIA GeForce RTX 4070",
        "uuid": "GPU-11aa",
        "driver": "580.95.05",
        "pstate": "P2",
        "compute_mode": "Default",
        "index": 0,
        "sm_mhz": 2475,
        "sm_max_mhz": 3105,
        "memory_mhz": 10251,
        "memory_max_mhz": 10501,
        "temperature_c": 61,
        "power_w": 187.43,
        "power_limit_w": 200.0,
        "memory_total_mib": 12282,
        "memory_used_mib": 911,
        "utilization_pct": 98,
        "throttle_reasons": ["power cap", "heat (driver)"],
        "count": 1,
        "note": None,
    }
    assert asked[0][0] == "nvidia-smi"
    assert "clocks_event_reasons.active" in asked[0][1]


def test_an_idle_card_and_set_clocks_are_not_throttled() -> None:
    ask, _ = answers(f"{GPU}, 0x0000000000000003\n")
    found = nvidia_smi.snapshot(ask, {})
    assert found is not None
    assert found["throttle_reasons"] == []


def test_what_a_driver_does_not_know_is_none_not_zero() -> None:
    ask, _ = answers(f"{OLD}, [N/A]\n")
    found = nvidia_smi.snapshot(ask, {})
    assert found is not None
    assert found["temperature_c"] == 40
    for key in ("uuid", "pstate", "sm_mhz", "sm_max_mhz", "memory_mhz", "memory_max_mhz"):
        assert found[key] is None
    assert found["power_w"] is found["throttle_reasons"] is None


def test_a_driver_that_refuses_a_field_is_asked_for_less() -> None:
    ask, asked = answers(REFUSED, REFUSED, f"{GPU}\n")
    found = nvidia_smi.snapshot(ask, {})
    assert found is not None
    assert found["throttle_reasons"] is None
    assert "clocks_throttle_reasons.active" in asked[1][1]
    assert "reasons" not in asked[2][1]


@pytest.mark.parametrize(
    "failure",
    [FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("nvidia-smi", 8), OSError("no")],
)
def test_no_driver_is_no_gpu_and_is_asked_once(failure: Exception) -> None:
    ask, asked = answers(failure)
    assert nvidia_smi.snapshot(ask) is None
    assert len(asked) == 1


@pytest.mark.parametrize("text", ["", "No devices were found", "\n\n", "a, b, c"])
def test_output_that_is_no_table_is_no_gpu(text: str) -> None:
    ask, _ = answers(text, text, text)
    assert nvidia_smi.snapshot(ask) is None


SECOND = GPU.replace("Default, 0", "Exclusive_Process, 1").replace("11aa", "22bb")


def of_two(**environment: str) -> dict[str, Any] | None:
    """Of two cards, where CUDA's own first one is the second on the bus."""
    ask, _ = answers(f"{GPU}, 0x0\n{SECOND}, 0x0\n")
    return nvidia_smi.snapshot(ask, environment, lambda: "GPU-22bb")


@pytest.mark.parametrize(
    ("visible", "index"), [(None, 0), ("0", 0), ("1", 1), ("1,0", 1), ("GPU-2,GPU-11aa", 1)]
)
def test_in_the_order_of_the_bus_the_visible_card_is_read(visible: str | None, index: int) -> None:
    shown = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = of_two(CUDA_DEVICE_ORDER="PCI_BUS_ID", **shown)
    assert found is not None
    assert (found["index"], found["count"], found["note"]) == (index, 2, None)
    assert found["compute_mode"] == ("Default", "Exclusive_Process")[index]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"},
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "MIG-1a2b"},
    ],
    ids=str,
)
def test_where_cuda_counts_otherwise_its_own_first_card_is_read(
    environment: dict[str, str],
) -> None:
    found = of_two(**environment)
    assert found is not None
    assert (found["index"], found["uuid"]) == (1, "GPU-22bb")


@pytest.mark.parametrize("uuid", [None, "GPU-33cc"])
def test_a_card_that_nobody_can_tell_is_none_of_them_and_that_is_said(uuid: str | None) -> None:
    ask, _ = answers(f"{GPU}, 0x0\n{SECOND}, 0x0\n")
    found = nvidia_smi.snapshot(ask, {}, lambda: uuid)
    assert found is not None
    known = {key: value for key, value in found.items() if value is not None}
    assert known.pop("note").startswith("which of these GPUs CUDA takes first is not known")
    assert known == {"driver": "580.95.05", "count": 2}
    assert set(found) == set(of_two(CUDA_DEVICE_ORDER="PCI_BUS_ID") or {})


@pytest.mark.parametrize("visible", ["", "-1", "7", "GPU-33", "nonsense"])
def test_where_cuda_is_shown_no_card_none_is_read(visible: str) -> None:
    for order in ("PCI_BUS_ID", "FASTEST_FIRST"):
        assert of_two(CUDA_VISIBLE_DEVICES=visible, CUDA_DEVICE_ORDER=order) is None


def test_the_only_card_is_the_first_one_in_any_order() -> None:
    def asked() -> str:
        raise AssertionError("CUDA was started for nothing")

    ask, _ = answers(f"{GPU}, 0x0\n")
    found = nvidia_smi.snapshot(ask, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, asked)
    assert found is not None
    assert found["uuid"] == "GPU-11aa"


def test_a_hanging_nvidia_smi_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(nvidia_smi, "TIMEOUT_S", 0.2)
    started = time.monotonic()
    assert nvidia_smi.snapshot() is None
    assert time.monotonic() - started < 5.0
