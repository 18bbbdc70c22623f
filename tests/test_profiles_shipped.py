"""The shipped profiles: what they ask for, where their figures come from, their table of keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hwloop.errors import UsageError
from hwloop.measure.profile import recipe_for, rules_for
from hwloop.measure.profile_file import CHECKOUT, known_profiles, load_profile, resolve

JETSONS = (
    "jetson-orin",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-agx-orin",
    "jetson-thor",
)
LOCAL = ("cuda", "rtx")
# Tensor cores, CUDA cores, GHz, gigabytes per second, dense INT8 TOPS as printed.
PRINTED = {
    "jetson-orin": (32, 1024, 1.020, 102.0, 33),
    "jetson-orin-nano": (32, 1024, 1.020, 102.0, 33),
    "jetson-orin-nx": (32, 1024, 0.918, 102.0, 30),
    "jetson-agx-orin": (64, 2048, 1.300, 204.8, 85),
}
README = (CHECKOUT / "README.md").read_text()


@pytest.mark.parametrize("name", [*JETSONS, *LOCAL])
def test_a_gpu_profile_asks_for_tensorrt_in_fp16(name: str) -> None:
    profile = load_profile(name)
    rules = rules_for(profile, "")
    assert profile.runtime == "tensorrt"
    assert recipe_for(profile, "") == "tensorrt"
    assert rules.base_precision == "fp16"
    assert rules.align == 8
    assert set(rules.precisions) == {"base", "int8"}
    assert set(rules.kinds) == {"keep", "drop", "prune"}
    assert profile.settings["avg_timing_iterations"] == 8
    assert profile.settings["tf32"] is False


@pytest.mark.parametrize("name", JETSONS)
def test_a_jetson_is_reached_over_ssh_with_the_systems_python(name: str) -> None:
    profile = load_profile(name)
    assert profile.transport == "ssh"
    assert str(profile.host) == name
    assert profile.python == "/usr/bin/python3"
    assert profile.build_timeout_s >= 1200
    assert profile.reconnect_s >= 120


@pytest.mark.parametrize("name", LOCAL)
def test_a_card_of_this_machine_is_local(name: str) -> None:
    assert load_profile(name).transport == "local"
    with pytest.raises(UsageError, match="no datasheet"):
        resolve(name, simulate=True)


@pytest.mark.parametrize("name", sorted(known_profiles()))
def test_only_what_the_project_has_run_says_so(name: str) -> None:
    assert load_profile(name).verified == (name in ("cpu", "openvino"))


@pytest.mark.parametrize("name", JETSONS)
def test_a_jetson_warms_up_until_its_clocks_have_settled(name: str) -> None:
    protocols = load_profile(name).protocols
    assert protocols.row.warmup_s >= 0.2
    for protocol in (protocols.loop, protocols.final, protocols.bench):
        assert protocol.warmup_s >= 1.0


@pytest.mark.parametrize("name", sorted(known_profiles()))
def test_a_warm_up_leaves_most_of_the_time_for_samples(name: str) -> None:
    # The time limit of a measurement counts from before its warm-up.
    protocols = load_profile(name).protocols
    for protocol in (protocols.row, protocols.loop, protocols.final, protocols.bench):
        assert protocol.warmup_s <= protocol.time_limit_s / 3


@pytest.mark.parametrize("name", PRINTED)
def test_an_orins_rates_follow_from_its_cores_and_its_clock(name: str) -> None:
    tensor_cores, cuda_cores, ghz, gbytes_per_s, printed_tops = PRINTED[name]
    sheet = load_profile(name).datasheet
    assert sheet is not None
    int8_tops = tensor_cores * ghz * 1.024
    assert int8_tops == pytest.approx(printed_tops, rel=0.02)
    assert sheet.tmacs_per_s["int8"] == pytest.approx(int8_tops / 2, rel=1e-3)
    assert sheet.tmacs_per_s["fp16"] == pytest.approx(int8_tops / 4, rel=1e-3)
    assert sheet.tmacs_per_s["fp32"] == pytest.approx(cuda_cores * ghz / 1000, rel=1e-3)
    assert sheet.gbytes_per_s == gbytes_per_s


def test_thors_rates_are_the_printed_ones() -> None:
    sheet = load_profile("jetson-thor").datasheet
    assert sheet is not None
    assert sheet.tmacs_per_s["int8"] * 2 == pytest.approx(517)
    assert sheet.tmacs_per_s["fp16"] * 2 == pytest.approx(258)
    assert sheet.tmacs_per_s["fp32"] == pytest.approx(2560 * 1.57 / 1000, rel=1e-3)
    assert sheet.gbytes_per_s == 273


@pytest.mark.parametrize("name", JETSONS)
def test_no_datasheet_claims_to_be_verified_and_each_names_its_source(name: str) -> None:
    sheet = load_profile(name).datasheet
    assert sheet is not None
    assert not sheet.verified
    assert re.search(r"DS-\d{5}|TB-\d{5}", sheet.source)


@pytest.mark.parametrize("name", JETSONS)
def test_a_jetson_can_be_rehearsed_without_the_board(name: str) -> None:
    profile = resolve(name, simulate=True)
    assert profile.simulated
    assert profile.transport == "local"
    assert profile.recipe == "tensorrt"
    assert profile.space.base_precision == "fp16"


# ------------------------------------------------------------------------- the table of keys

TABLES = ("", "settings", "space", "timeouts", "protocol", "protocol.row", "datasheet")
HEAD = 'description = "d"\nruntime = "tensorrt"\n'
SHEET = '[datasheet]\ngbytes_per_s = 1\nsource = "s"\n'


def accepted(text: str, folder: Path) -> set[str]:
    """The keys that the reader names when it meets one that resembles none."""
    path = folder / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_profile(str(path))
    return set(str(caught.value).split("known: ", 1)[1].split(", "))


def keys_that_load(folder: Path) -> set[str]:
    found = set()
    for table in TABLES:
        section = f"[{table}]\n" if table else ""
        for key in accepted(f"{HEAD}{section}zzqqxxjj = 1\n", folder):
            found.add(f"{table}.{key}" if table else key)
    rates = accepted(f"{HEAD}{SHEET}tmacs_per_s = {{ zzqqxxjj = 1 }}\n", folder)
    found |= {f"datasheet.tmacs_per_s.{key}" for key in rates} | {"space.align", "space.recipe"}
    found -= {"settings", "space", "timeouts", "protocol", "datasheet", "datasheet.tmacs_per_s"}
    return {key.replace("protocol.row.", "protocol.*.") for key in found}


def test_the_table_names_every_key_that_a_profile_may_have(tmp_path: Path) -> None:
    rows = README.split("## Keys", 1)[1].splitlines()
    cells = [row.split("|")[1] for row in rows if row.startswith("| `")]
    assert {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)} == keys_that_load(
        tmp_path
    )


def test_the_table_names_every_shipped_profile() -> None:
    rows = [row for row in README.split("## Keys", 1)[0].splitlines() if row.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert named == {path.stem for path in CHECKOUT.glob("*.toml")}
