"""Power and energy: from rails whose values change, from tegrastats, from nvidia-smi."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from graphs import row_onnx
from test_jetson import DATA, plant

from hwloop.device import power
from hwloop.measure.table import REFERENCE

LINES = json.loads((DATA / "tegrastats.json").read_text())
AGX_RAILS = ("VDDQ_VDD2_1V8AO", "VDD_CPU_CV", "VDD_GPU_SOC", "VIN_SYS_5V0")
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


def slept(seconds: float) -> Callable[[], int]:
    """One inference that takes so long."""

    def run() -> int:
        time.sleep(seconds)
        return 1

    return run


def put(path: Path, text: str) -> None:
    """Replace a file that is being read, in one step."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)


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
    assert nano == (pytest.approx(9250.3, abs=0.1), ("VDD_IN",))
    agx = power.total_mw(power.rails_mw(plant("agx_orin", tmp_path / "agx")))
    assert agx is not None
    assert agx[0] == pytest.approx((8432 * 640 + 7800 * 300 + 4968 * 953 + 1800 * 341) / 1000)
    assert agx[1] == AGX_RAILS  # and no NC
    thor = power.total_mw(power.rails_mw(plant("thor", tmp_path / "thor")))
    assert thor == (42500.0, ("VIN",))  # microwatts, of another kind of sensor


def test_no_sensors_are_no_rails_and_no_energy(tmp_path: Path) -> None:
    assert power.rails_mw(tmp_path) == {}
    assert power.total_mw({}) is None
    assert power.energy_mj(lambda: 1, seconds=0.1, root=tmp_path) is None


def test_energy_is_mean_power_times_time_per_run(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path)
    (root / CURRENT).write_text("2000\n")
    found = power.energy_mj(slept(0.01), seconds=0.4, root=root)
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

    def run() -> int:
        nonlocal runs
        runs += 1
        put(current, "1000\n" if runs % 2 else "3000\n")
        time.sleep(0.013)
        return 1

    found = power.energy_mj(run, seconds=0.8, root=root)
    assert found is not None
    low, high = 4984.0, 3 * 4984.0
    assert low < found["mean_mw"] < high
    assert found["mean_mw"] not in (low, high)


def test_the_lead_in_is_not_counted(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path)
    (root / CURRENT).write_text("9000\n")
    started: list[float] = []

    def run() -> int:
        started.append(time.monotonic())
        if started[-1] - started[0] > 0.22:
            put(root / CURRENT, "1000\n")
        time.sleep(0.01)
        return 1

    found = power.energy_mj(run, seconds=1.2, root=root)
    assert found is not None
    assert found["mean_mw"] == pytest.approx(4984.0)
    assert 5 <= found["samples"] <= 120


def test_the_power_without_a_load_stands_beside(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path)
    (root / CURRENT).write_text("500\n")

    def run() -> int:
        put(root / CURRENT, "2000\n")
        time.sleep(0.01)
        return 1

    found = power.energy_mj(run, seconds=0.8, root=root)
    assert found is not None
    assert found["idle_mw"] == pytest.approx(4984 * 0.5)
    assert found["mean_mw"] == pytest.approx(4984 * 2.0)  # nothing is subtracted
    assert found["energy_mj"] >= found["mean_mw"] * 0.01


def test_a_burst_counts_as_many_runs_as_it_says(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path)

    def burst() -> int:
        time.sleep(0.02)
        return 40

    found = power.energy_mj(burst, seconds=0.4, root=root)
    assert found is not None
    assert found["runs"] % 40 == 0
    assert 0.0005 <= found["energy_mj"] / found["mean_mw"] < 0.001


def test_rails_that_were_summed_stand_in_the_result(tmp_path: Path) -> None:
    root = plant("agx_orin", tmp_path)
    found = power.energy_mj(slept(0.01), seconds=0.8, root=root)
    whole = power.total_mw(power.rails_mw(root))
    assert found is not None
    assert whole is not None
    assert found["rails"] == list(AGX_RAILS)
    assert found["source"] == "+".join(AGX_RAILS)
    assert found["idle_mw"] == pytest.approx(whole[0])
    assert found["mean_mw"] == pytest.approx(whole[0])


def test_other_rails_before_the_load_are_no_idle_power(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path)
    kept = (root / CURRENT).read_text()
    (root / CURRENT).write_text("")  # VDD_IN shows up with the first run

    def run() -> int:
        put(root / CURRENT, kept)
        time.sleep(0.01)
        return 1

    found = power.energy_mj(run, seconds=0.8, root=root)
    assert found is not None
    assert (found["rails"], found["idle_mw"]) == (["VDD_IN"], None)


@pytest.mark.parametrize(("inference_s", "least", "most"), [(0.05, 1, 1), (0.001, 5, 21)])
def test_onnx_runtime_runs_in_bursts(
    monkeypatch: pytest.MonkeyPatch, inference_s: float, least: int, most: int
) -> None:
    from hwloop.device import ort

    monkeypatch.setattr(
        ort.OrtRuntime, "bound_run", lambda self, engine: lambda: time.sleep(inference_s)
    )
    with ort.OrtRuntime({}).running(row_onnx(REFERENCE), {}) as run:
        started = time.perf_counter()
        count = run()
        elapsed_s = time.perf_counter() - started
    assert least <= count <= most
    assert elapsed_s >= max(0.02, inference_s)


def test_the_energy_of_a_real_network_counts_its_inferences(tmp_path: Path) -> None:
    from hwloop.device.ort import OrtRuntime

    with OrtRuntime({}).running(row_onnx(REFERENCE), {}) as run:
        found = power.energy_mj(run, seconds=0.2, root=plant("orin_nano", tmp_path))
    assert found is not None
    assert found["runs"] > 10
    assert found["energy_mj"] == pytest.approx(found["mean_mw"] * 0.2 / found["runs"], rel=0.5)


def test_a_rail_that_is_missing_now_and_then_makes_no_low_sample(tmp_path: Path) -> None:
    root = plant("agx_orin", tmp_path)
    whole = power.total_mw(power.rails_mw(root))
    gone = root / "sys/class/hwmon/hwmon3/curr2_input"
    kept = gone.read_text()
    runs = 0

    def run() -> int:
        nonlocal runs
        runs += 1
        gone.write_text("" if runs % 3 == 0 else kept)
        time.sleep(0.031)
        return 1

    found = power.energy_mj(run, seconds=0.8, root=root)
    assert whole is not None
    assert found is not None
    assert found["mean_mw"] == pytest.approx(whole[0])


def test_too_few_samples_are_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "SAMPLE_EVERY_S", 0.1)
    root = plant("orin_nano", tmp_path)
    assert power.energy_mj(slept(0.01), seconds=0.15, root=root) is None


def test_a_run_that_fails_says_so_and_leaves_no_thread(tmp_path: Path) -> None:
    import threading

    def run() -> int:
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
    body = f"while :; do echo '{line}'; sleep 0.02; done"
    program(root / power.TEGRASTATS, body)
    assert power.tegrastats(root)["rails_mw"]["VDD_SOC"] == 2310.0
    found = power.energy_mj(slept(0.01), seconds=0.8, root=root)
    assert found is not None
    assert (found["source"], found["rails"]) == ("tegrastats", ["VDD_IN"])
    assert found["mean_mw"] == found["idle_mw"] == 14251.0


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
    assert power.energy_mj(lambda: 1, seconds=0.1, root=root) is None


def test_a_graphics_card_is_sampled_through_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = "GPU, GPU-1a, 580, P0, Default, 0, 1, 1, 1, 1, 50, 180.5, 200, 100, 1, 99, 0x0"
    body = (
        f'case "$*" in *--loop-ms=100*--id=*|*--id=GPU-1a*--loop-ms=100*) '
        f"while :; do echo 180.50; echo '[N/A]'; sleep 0.02; done;; *) echo '{gpu}';; esac"
    )
    program(tmp_path / "bin" / "nvidia-smi", body)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    if power.rails_mw():
        pytest.skip("this machine has rails of its own")
    found = power.energy_mj(slept(0.01), seconds=0.8)
    assert found is not None
    assert (found["source"], found["rails"]) == ("nvidia-smi", ["power.draw"])
    assert found["mean_mw"] == found["idle_mw"] == 180_500.0
