"""Power and energy: from rails whose values change, from tegrastats, from nvidia-smi."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from test_jetson import DATA, plant

from hwloop.device import power

LINES = json.loads((DATA / "tegrastats.json").read_text())
CURRENT = "sys/class/hwmon/hwmon1/curr1_input"


@pytest.fixture(autouse=True)
def sample_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Often enough that no test depends on which instants are hit."""
    monkeypatch.setattr(power, "SAMPLE_EVERY_S", 0.01)


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def bare_orin(folder: Path) -> Path:
    """An Orin Nano whose sensors are hidden."""
    return plant("orin_nano", folder, **{"sys/class/hwmon/hwmon1/name": None})


def test_rails_are_volts_times_amperes_by_name(tmp_path: Path) -> None:
    assert power.rails_mw(plant("orin_nano", tmp_path)) == {
        "VDD_IN": pytest.approx(4984 * 1856 / 1000),
        "VDD_CPU_GPU_CV": pytest.approx(4984 * 320 / 1000),
        "VDD_SOC": pytest.approx(4984 * 512 / 1000),
    }


def test_the_total_is_the_input_rail_or_the_sum_of_all(tmp_path: Path) -> None:
    nano = power.total_mw(power.rails_mw(plant("orin_nano", tmp_path / "nano")))
    assert nano == (pytest.approx(9250.3, abs=0.1), "VDD_IN")
    agx = power.total_mw(power.rails_mw(plant("agx_orin", tmp_path / "agx")))
    assert agx is not None
    assert agx[0] == pytest.approx((8432 * 640 + 7800 * 300 + 4968 * 953 + 1800 * 341) / 1000)
    assert agx[1] == "VDDQ_VDD2_1V8AO+VDD_CPU_CV+VDD_GPU_SOC+VIN_SYS_5V0"  # and no NC
    thor = power.total_mw(power.rails_mw(plant("thor", tmp_path / "thor")))
    assert thor == (42500.0, "VIN")  # microwatts, of another kind of sensor


def test_no_sensors_are_no_rails_and_no_energy(tmp_path: Path) -> None:
    assert power.rails_mw(tmp_path) == {}
    assert power.total_mw({}) is None
    assert power.energy_mj(lambda: None, seconds=0.1, root=tmp_path) is None


def test_energy_is_mean_power_times_time_per_run(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path)
    (root / CURRENT).write_text("2000\n")
    found = power.energy_mj(lambda: time.sleep(0.01), seconds=0.4, root=root)
    assert found is not None
    assert found["source"] == "VDD_IN"
    assert found["mean_mw"] == pytest.approx(4984 * 2000 / 1000)
    assert found["samples"] >= power.MIN_SAMPLES
    per_run_s = found["energy_mj"] / found["mean_mw"]
    assert 0.01 <= per_run_s < 0.02
    assert found["runs"] * per_run_s >= 0.4


def test_energy_follows_a_power_that_changes(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path)
    current = root / CURRENT
    runs = 0

    def run() -> None:
        nonlocal runs
        runs += 1
        fresh = current.with_suffix(".new")
        fresh.write_text("1000\n" if runs % 2 else "3000\n")
        os.replace(fresh, current)
        time.sleep(0.013)

    found = power.energy_mj(run, seconds=0.8, root=root)
    assert found is not None
    low, high = 4984.0, 3 * 4984.0
    assert low < found["mean_mw"] < high
    assert found["mean_mw"] not in (low, high)


def test_the_lead_in_is_not_counted(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path)
    (root / CURRENT).write_text("9000\n")
    started = time.monotonic()

    def run() -> None:
        if time.monotonic() - started > 0.22:
            fresh = (root / CURRENT).with_suffix(".new")
            fresh.write_text("1000\n")
            os.replace(fresh, root / CURRENT)
        time.sleep(0.01)

    found = power.energy_mj(run, seconds=1.2, root=root)
    assert found is not None
    assert found["mean_mw"] == pytest.approx(4984.0)
    assert 5 <= found["samples"] <= 120


def test_a_rail_that_is_missing_now_and_then_makes_no_low_sample(tmp_path: Path) -> None:
    root = plant("agx_orin", tmp_path)
    whole = power.total_mw(power.rails_mw(root))
    gone = root / "sys/class/hwmon/hwmon3/curr2_input"
    kept = gone.read_text()
    runs = 0

    def run() -> None:
        nonlocal runs
        runs += 1
        gone.write_text("" if runs % 3 == 0 else kept)
        time.sleep(0.031)

    found = power.energy_mj(run, seconds=0.8, root=root)
    assert whole is not None
    assert found is not None
    assert found["mean_mw"] == pytest.approx(whole[0])


def test_too_few_samples_are_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "SAMPLE_EVERY_S", 0.1)
    root = plant("orin_nano", tmp_path)
    assert power.energy_mj(lambda: time.sleep(0.01), seconds=0.15, root=root) is None


def test_a_run_that_fails_says_so_and_leaves_no_thread(tmp_path: Path) -> None:
    import threading

    def run() -> None:
        raise RuntimeError("no kernel")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no kernel"):
        power.energy_mj(run, seconds=1.0, root=plant("orin_nano", tmp_path))
    assert threading.active_count() == before


# ------------------------------------------------------------------------------ tegrastats


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jetpack5", (14, 510, 2133, 9120, 58.125, 10300.0)),
        ("jetpack6", (97, 918, 3199, 2102, 52.375, 14251.0)),
        ("jetpack6_two_parts", (0, 0, None, 8000, None, 8000.0)),
        ("jetpack7", (None, 1574, 4266, 4000, 51.25, 29000.0)),
    ],
)
def test_every_version_of_a_line_is_understood(name: str, expected: tuple[float | None]) -> None:
    found = power.parse_tegrastats(LINES[name])
    heat = {key.lower(): value for key, value in found["temperatures_c"].items()}
    total = power.total_mw(found["rails_mw"])
    clocks = (found["gpu_load_pct"], found["gpu_mhz"], found["emc_mhz"], found["ram_used_mib"])
    assert (*clocks, heat.get("gpu"), total and total[0]) == expected
    assert all(value > -40 for value in heat.values())  # CV0@-256C is switched off
    assert "NC" not in found["rails_mw"]


@pytest.mark.parametrize("line", ["", "RAM", "GR3D_FREQ @[]", "VDD_IN mW/", "\0", "x" * 10_000])
def test_a_broken_line_gives_nothing(line: str) -> None:
    found = power.parse_tegrastats(line)
    assert not any(found.values())


def test_tegrastats_stands_in_for_hidden_sensors(tmp_path: Path) -> None:
    root = bare_orin(tmp_path)
    line = LINES["jetpack6"]
    body = f"while :; do echo '{line}'; sleep 0.05; done"
    program(root / power.TEGRASTATS, body)
    assert power.tegrastats(root)["rails_mw"]["VDD_SOC"] == 2310.0
    found = power.energy_mj(lambda: time.sleep(0.01), seconds=0.8, root=root)
    assert found is not None
    assert (found["source"], found["mean_mw"]) == ("tegrastats", 14251.0)


@pytest.mark.parametrize("body", ["exec sleep 60", "exit 1", "echo nonsense; exec sleep 60"])
def test_a_silent_tegrastats_is_ended(tmp_path: Path, body: str) -> None:
    root = bare_orin(tmp_path)
    program(root / power.TEGRASTATS, body)
    started = time.monotonic()
    found = power.tegrastats(root, timeout_s=0.3)
    assert not found.get("rails_mw")
    assert time.monotonic() - started < 2.0


def test_a_tegrastats_that_cannot_be_run_is_absent(tmp_path: Path) -> None:
    root = bare_orin(tmp_path)
    program(root / power.TEGRASTATS, "").chmod(0o644)
    assert power.tegrastats(root) == {}
    assert power.energy_mj(lambda: None, seconds=0.1, root=root) is None


def test_a_graphics_card_is_sampled_through_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = "GPU, GPU-1a, 580, P0, 0, 1, 1, 1, 1, 50, 180.5, 200, 100, 1, 99, 0x0"
    body = (
        f'case "$*" in *--loop-ms=100*--id=*|*--id=GPU-1a*--loop-ms=100*) '
        f"while :; do echo 180.50; echo '[N/A]'; sleep 0.05; done;; *) echo '{gpu}';; esac"
    )
    program(tmp_path / "bin" / "nvidia-smi", body)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    if power.rails_mw():
        pytest.skip("this machine has rails of its own")
    found = power.energy_mj(lambda: time.sleep(0.01), seconds=0.8)
    assert found is not None
    assert (found["source"], found["mean_mw"]) == ("nvidia-smi", 180_500.0)
