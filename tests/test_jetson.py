"""What a Jetson says about itself, on composed file trees: module, mode, clocks, heat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hwloop.device import jetson

DATA = Path(__file__).parent / "data" / "jetson"
BOARDS = ("orin_nano", "agx_orin", "thor", "xavier_nx", "container")


def plant(name: str, folder: Path, **changes: str | None) -> Path:
    """The file tree of a board below ``folder``; ``changes`` by path, None leaves a file out."""
    files = {**json.loads((DATA / f"{name}.json").read_text()), **changes}
    for path, text in files.items():
        if text is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    return folder


def test_an_orin_nano_says_what_it_is(tmp_path: Path) -> None:
    found = jetson.snapshot(plant("orin_nano", tmp_path))
    assert found is not None
    assert found["module"] == "Orin Nano 8GB"
    assert found["part"] == "p3767-0005"
    assert found["model"] == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (found["soc"], found["soc_name"]) == ("tegra234", "Orin")
    assert (found["l4t"], found["jetpack"]) == ("36.4.7", "6.2.1")
    assert (found["power_mode"], found["power_mode_id"]) == ("25W", 1)
    assert found["gpu"] == {
        "mhz": 306,
        "min_mhz": 306,
        "max_mhz": 918,
        "locked": False,
        "governor": "nvhost_podgov",
    }
    assert found["emc"] == {"mhz": None, "max_mhz": 3199, "locked": None}
    assert found["throttled"] is False
    assert found["overcurrent_events"] == 0


def test_an_agx_orin_read_by_root_shows_its_memory_clock_and_its_lock(tmp_path: Path) -> None:
    found = jetson.snapshot(plant("agx_orin", tmp_path))
    assert found is not None
    assert found["module"] == "AGX Orin 64GB"
    assert found["power_mode"] == "MODE_30W"
    assert found["gpu"]["locked"] is True
    assert found["gpu"]["max_mhz"] == 625  # of ga10b, not of the alias beside it
    assert found["emc"] == {"mhz": 3199, "max_mhz": 3199, "locked": True}


def test_a_thor_shows_a_hot_gpu_and_a_limit_below_its_mode(tmp_path: Path) -> None:
    found = jetson.snapshot(plant("thor", tmp_path))
    assert found is not None
    assert (found["module"], found["soc_name"], found["jetpack"]) == ("Thor T5000", "Thor", "7.1")
    assert found["power_mode"] == "120W"
    assert found["gpu"]["max_mhz"] == 1071  # of the cores, not of the video engines
    assert found["emc"] == {"mhz": 4266, "max_mhz": 4266, "locked": True}
    assert found["throttled"] is True
    assert found["throttle_reasons"] == [
        "gpu-throttle-alert is active",
        "the GPU is limited to 1071 of 1386 MHz",
    ]
    assert found["overcurrent_events"] == 42


def test_where_nothing_can_be_read_nothing_is_claimed(tmp_path: Path) -> None:
    found = jetson.snapshot(plant("container", tmp_path))
    assert found is not None
    assert found["l4t"] == "36.4.4"
    empty = {key: found[key] for key in ("module", "part", "model", "soc", "power_mode")}
    assert set(empty.values()) == {None}
    assert set(found["gpu"].values()) == set(found["emc"].values()) == {None}
    assert found["temperatures_c"] == {}
    assert found["throttled"] is None
    assert found["overcurrent_events"] is None


def test_a_machine_that_is_no_jetson_has_no_record(tmp_path: Path) -> None:
    assert jetson.snapshot(tmp_path) is None
    device_tree = tmp_path / "proc/device-tree"
    device_tree.mkdir(parents=True)
    (device_tree / "compatible").write_text("raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert jetson.snapshot(tmp_path) is None


@pytest.mark.parametrize(
    ("compatible", "soc", "part"),
    [
        ("nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234", "tegra234", "0000"),
        ("nvidia,p3509-0000+p3767-0001\0nvidia,tegra234", "tegra234", "0001"),
        ("acme,carrier+p3767-0004\0nvidia,tegra234", "tegra234", "0004"),
        ("nvidia,p3737-0000+p3701-9999\0nvidia,tegra234", "tegra234", None),
        ("nvidia,tegra186", "tegra186", None),
        ("", None, None),
    ],
)
def test_the_module_is_found_behind_its_carrier(
    compatible: str, soc: str | None, part: str | None
) -> None:
    found = jetson.parse_compatible(compatible)
    assert found == (soc, None if part is None else f"p3767-{part}")


@pytest.mark.parametrize(
    ("text", "l4t"),
    [
        ("# R36 (release), REVISION: 4.7, GCID: 4, BOARD: generic", "36.4.7"),
        ("# R38 (release), REVISION: 2.0", "38.2.0"),
        ("# R32 (release), REVISION: 7.1, GCID: 2", "32.7.1"),
        ("# R36 (release), REVISION: , GCID", None),
        ("", None),
    ],
)
def test_the_l4t_version_is_read_from_its_line(text: str, l4t: str | None) -> None:
    assert jetson.parse_l4t(text) == l4t


@pytest.mark.parametrize(
    ("l4t", "version"),
    [("36.4.0", "6.1"), ("36.3.0", "6.0"), ("36.5.0", "6.2.2"), ("39.2.0", "7.2"), ("99.1", None)],
)
def test_jetpack_follows_from_l4t_where_its_package_is_absent(
    tmp_path: Path, l4t: str, version: str | None
) -> None:
    assert jetson.jetpack(tmp_path, l4t) == version


def test_jetpack_is_its_package_where_that_is_installed(tmp_path: Path) -> None:
    # The neighbour whose name begins alike says 9.9.
    assert jetson.jetpack(plant("agx_orin", tmp_path), "36.3.0") == "6.2"


def test_the_same_mode_number_has_another_name_on_another_module(tmp_path: Path) -> None:
    nano = plant("orin_nano", tmp_path / "nano")
    agx = plant("agx_orin", tmp_path / "agx", **{"var/lib/nvpmodel/status": "pmode:0001\n"})
    assert jetson.power_mode(nano) == (1, "25W")
    assert jetson.power_mode(agx) == (1, "MODE_15W")


def test_a_mode_that_the_configuration_does_not_name_has_no_name(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path, **{"var/lib/nvpmodel/status": "pmode:0009\n"})
    assert jetson.power_mode(root) == (9, None)


def test_no_limit_is_not_read_as_a_limit() -> None:
    conf = "< POWER_MODEL ID=0 NAME=MAXN >\nGPU MAX_FREQ -1\nEMC MAX_FREQ 0\n"
    assert jetson.parse_power_modes(conf) == {
        0: {"name": "MAXN", "gpu_max_hz": None, "emc_max_hz": None}
    }


def test_the_cap_of_the_power_mode_is_the_memory_clock_where_no_file_says_more(
    tmp_path: Path,
) -> None:
    changes = {"sys/kernel/nvpmodel_clk_cap/emc": None, "var/lib/nvpmodel/status": "pmode:0003"}
    assert jetson.emc_clock(plant("orin_nano", tmp_path, **changes))["max_mhz"] == 2133


def test_an_unlimited_cap_is_no_memory_clock_and_an_open_lock_is_none(tmp_path: Path) -> None:
    debug = jetson.EMC_DEBUG
    changes = {
        "sys/kernel/nvpmodel_clk_cap/emc": "9223372036854775807\n",
        "etc/nvpmodel.conf": None,
        f"{debug}/mrq_rate_locked": "0\n",
    }
    found = jetson.emc_clock(plant("orin_nano", tmp_path, **changes))
    assert found == {"mhz": None, "max_mhz": None, "locked": False}


def test_clocks_are_locked_when_lowest_and_highest_are_the_same(tmp_path: Path) -> None:
    path = "sys/class/devfreq/17000000.gpu/min_freq"
    root = plant("orin_nano", tmp_path, **{path: "918000000\n"})
    assert jetson.gpu_clock(root)["locked"] is True


def test_zones_that_are_off_or_invented_are_no_temperatures(tmp_path: Path) -> None:
    found = jetson.temperatures_c(plant("agx_orin", tmp_path / "agx"))
    assert found == {"CPU-therm": 52.0, "tj-therm": 53.0}
    assert "cv0-thermal" not in jetson.temperatures_c(plant("orin_nano", tmp_path / "nano"))


def test_a_fan_and_a_slow_clock_alone_are_no_throttling(tmp_path: Path) -> None:
    # The fan runs, the clock is at its lowest: the board is idle.
    found = jetson.throttling(plant("orin_nano", tmp_path))
    assert (found["throttled"], found["throttle_reasons"]) == (False, [])


def test_a_limit_rounded_down_to_a_step_is_no_throttling(tmp_path: Path) -> None:
    path = "sys/class/devfreq/17000000.gpu/max_freq"
    root = plant("orin_nano", tmp_path / "step", **{path: "891000000\n"})
    assert jetson.throttling(root)["throttled"] is False
    root = plant("orin_nano", tmp_path / "cut", **{path: "612000000\n"})
    assert jetson.throttling(root)["throttle_reasons"] == ["the GPU is limited to 612 of 918 MHz"]
