"""The doctor: every line in each of its states, on facts that are given to it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_jetson import plant

from hwloop.device import state
from hwloop.measure import doctor
from hwloop.measure.doctor import Check, HostFacts, wheels
from hwloop.measure.doctor.facts import NEEDED
from hwloop.measure.profile import TargetProfile
from hwloop.measure.profile_file import load_profile
from hwloop.parsing import to_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GOOD = HostFacts(
    python=(3, 12, 3),
    versions={
        **{name: f"{oldest}.9" for name, oldest in NEEDED.items()},
        "onnxruntime": "1.32.0",
        "tensorrt": "10.13.3.9",
    },
    tensorrt_place="/venv/lib/python3.12/site-packages/tensorrt",
    cuda_backends=("cuda-bindings",),
    cuda_driver=(13, 0),
    jetson=False,
    machine="x86_64",
    hidden_tensorrt=None,
    environment="/venv",
    ssh=True,
    file_system="ext4",
    free_bytes=50 << 30,
    load_average=0.2,
    cores=8,
)
CPU, CUDA, ORIN = (load_profile(name) for name in ("cpu", "cuda", "jetson-orin"))
WORKER = {
    "python": "3.10.12",
    "numpy": "1.26.4",
    "runtime": "tensorrt",
    "runtime_version": "10.3.0",
    "lock": None,
    "load_average": 0.3,
    "cores": 6,
    "disk": {"free_bytes": 20 << 30},
}


def host(profile: TargetProfile | None = None, **changes: Any) -> list[Check]:
    return doctor.host_checks(profile, replace(GOOD, **changes))


def without(*names: str, **more: str) -> dict[str, str]:
    kept = {name: version for name, version in GOOD.versions.items() if name not in names}
    return {**kept, **more}


def only(checks: list[Check], text: str) -> Check:
    found = [check for check in checks if text in check.what]
    assert len(found) == 1, f"{text!r} in {[check.what for check in checks]}"
    return found[0]


def board(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    return {**state.snapshot(plant(name, folder)), **WORKER, **changes}


@pytest.fixture
def nano(tmp_path: Path) -> dict[str, Any]:
    return board("orin_nano", tmp_path)


def there(facts: dict[str, Any], profile: TargetProfile = ORIN) -> list[Check]:
    return doctor.board_checks(profile, facts)


# --------------------------------------------------------------------------- this machine


def test_a_machine_in_order_has_no_complaint() -> None:
    checks = host(CPU)
    assert {check.state for check in checks} == {"ok"}
    assert not any(check.fix for check in checks)


def test_this_machine_is_examined_without_importing_a_framework() -> None:
    import subprocess

    code = (
        "import sys; from hwloop.measure import doctor\n"
        "found = doctor.host_checks(None); assert found\n"
        "sys.exit(bool({'torch', 'onnx', 'onnxruntime', 'tensorrt'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_the_needed_versions_are_those_of_the_package() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    wanted = {}
    for requirement in tomllib.loads(text)["project"]["dependencies"]:
        name, _, rest = requirement.partition(">=")
        wanted[name] = rest.partition(";")[0].partition(",")[0].strip()
    wanted.pop("tomli")  # of Python 3.10 alone, and without it no profile is read
    assert wanted == NEEDED


@pytest.mark.parametrize("python", [(3, 9, 18), (3, 8, 10)])
def test_an_old_python_fails(python: tuple[int, ...]) -> None:
    assert only(host(python=python), "Python 3.").state == "fail"


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_missing_package_fails_with_its_pip_line(name: str) -> None:
    check = only(host(versions=without(name)), f"{name} is not installed")
    assert (check.state, check.fix) == ("fail", f'python -m pip install "{name}>={NEEDED[name]}"')


def test_a_package_that_is_too_old_fails_and_a_local_build_of_a_new_one_does_not() -> None:
    assert only(host(versions=without(torch="2.9.1+cpu")), "torch 2.9.1").state == "fail"
    assert only(host(versions=without(torch="2.10.0+cu130")), "torch 2.10.0").state == "ok"
    assert only(host(versions=without(torch="10.0")), "torch 10.0").state == "ok"


def test_two_kinds_of_onnx_runtime_fail_with_the_command_that_separates_them() -> None:
    both = {**GOOD.versions, "onnxruntime-gpu": "1.31.1"}
    check = only(host(versions=both), "overwrite each other")
    assert check.state == "fail"
    assert check.fix is not None
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in check.fix


def test_either_kind_of_onnx_runtime_is_enough_and_none_is_not() -> None:
    gpu = without("onnxruntime", **{"onnxruntime-gpu": "1.31.1"})
    assert only(host(versions=gpu), "onnxruntime-gpu 1.31.1").state == "ok"
    check = only(host(versions=without("onnxruntime")), "ONNX Runtime is not installed")
    assert (check.state, check.fix) == ("fail", 'python -m pip install "hwloop[cpu]"')


def test_tensorrt_is_named_with_the_place_it_comes_from() -> None:
    assert "10.13.3.9, from pip (/venv" in only(host(CUDA), "TensorRT").what
    place = "/usr/lib/python3.10/dist-packages/tensorrt"
    assert "from apt (/usr/lib" in only(host(CUDA, tensorrt_place=place), "TensorRT").what


def test_tensorrt_is_asked_for_only_where_it_runs_here() -> None:
    absent = {"tensorrt_place": None, "versions": without("tensorrt"), "cuda_backends": ()}
    check = only(host(CUDA, **absent), "TensorRT is not installed")
    assert check.state == "fail"
    assert "hwloop[tensorrt]" in str(check.fix)
    for profile in (None, CPU, ORIN):
        assert not [c for c in host(profile, **absent) if "TensorRT" in c.what or "CUDA" in c.what]


@pytest.mark.parametrize(
    ("version", "state"),
    [("10.2.0", "fail"), ("8.6.2", "fail"), ("11.4.0", "ok"), ("12.0", "warn")],
)
def test_a_tensorrt_outside_what_was_written_for_is_said(version: str, state: str) -> None:
    assert only(host(CUDA, versions=without(tensorrt=version)), "TensorRT").state == state


def test_a_venv_that_hides_jetpacks_tensorrt_is_told_how_to_see_it() -> None:
    place = "/usr/lib/python3.10/dist-packages/tensorrt"
    check = only(host(CUDA, tensorrt_place=None, hidden_tensorrt=place), "does not see")
    assert check.state == "fail"
    assert "--system-site-packages" in str(check.fix)


def test_without_a_cuda_package_tensorrt_cannot_run() -> None:
    check = only(host(CUDA, cuda_backends=()), "no way to CUDA")
    assert (check.state, "cuda-bindings" in str(check.fix)) == ("fail", True)
    assert only(host(CUDA, cuda_backends=("cuda-bindings", "pycuda")), "CUDA through").state == "ok"


def test_ssh_is_needed_for_boards_alone() -> None:
    assert only(host(ORIN, ssh=False), "no ssh").state == "fail"
    assert only(host(CPU, ssh=False), "no ssh").state == "warn"


@pytest.mark.parametrize(
    ("free_bytes", "state"), [(50 << 30, "ok"), (1 << 30, "warn"), (10 << 20, "fail")]
)
def test_room_on_the_disk(free_bytes: int, state: str) -> None:
    assert only(host(free_bytes=free_bytes), "working folder").state == state


def test_a_network_disk_is_warned_of() -> None:
    assert only(host(file_system="nfs4"), "network disk (nfs4)").state == "warn"


@pytest.mark.parametrize(("load", "state"), [(0.9, "ok"), (3.9, "ok"), (4.5, "warn")])
def test_what_else_runs_here(load: float, state: str) -> None:
    assert only(host(load_average=load), "on 8 cores").state == state


def test_a_target_that_nobody_has_run_says_so() -> None:
    check = only(host(ORIN), "has not run target 'jetson-orin'")
    assert (check.state, "docs/on-hardware.md" in str(check.fix)) == ("warn", True)
    assert only(host(load_profile("fake")), "nothing of it is measured").state == "ok"


# ------------------------------------------------------------------------ wheels and drivers


def extras() -> dict[str, list[str]]:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    found: dict[str, list[str]] = tomllib.loads(text)["project"]["optional-dependencies"]
    return found


def test_the_extras_that_are_named_exist_and_bring_the_wheels_that_are_named() -> None:
    for cuda, extra in wheels.EXTRAS.items():
        wanted = extras()[extra]
        if wanted[0].startswith("hwloop["):
            wanted = extras()[wanted[0].removeprefix("hwloop[").rstrip("]")]
        assert wanted[0].startswith(f"{wheels.WHEELS[cuda]}{wheels.BOUNDS};")
        assert "x86_64" in wanted[0]
        bindings = wanted[1]
        assert bindings.startswith("cuda-bindings>=")
        assert ("<13" in bindings) == (cuda == 12)


class Driver:
    """libcuda with one call."""

    def __init__(self, version: int, status: int = 0) -> None:
        self.version, self.status = version, status

    def cuDriverGetVersion(self, out: Any) -> int:  # noqa: N802
        out._obj.value = self.version
        return self.status


def absent(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


def test_the_driver_says_which_cuda_it_runs() -> None:
    assert doctor.cuda_driver(lambda name: Driver(12040)) == (12, 4)
    assert doctor.cuda_driver(lambda name: Driver(13020)) == (13, 2)
    assert doctor.cuda_driver(lambda name: Driver(13020, status=100)) is None
    assert doctor.cuda_driver(lambda name: object()) is None
    assert doctor.cuda_driver(absent) is None


def test_a_wheel_for_a_newer_cuda_than_the_drivers_fails_with_the_extra_that_fits() -> None:
    versions = without(**{"tensorrt-cu13": "11.4.0.106"})
    check = only(host(CUDA, versions=versions, cuda_driver=(12, 4)), "error 35")
    assert check.state == "fail"
    assert "the driver runs 12" in check.what
    assert '"hwloop[tensorrt-cu12]"' in str(check.fix)
    assert "pip uninstall -y tensorrt tensorrt-cu13" in str(check.fix)
    old = without("tensorrt", **{"tensorrt-cu12": "10.16.1.11"})
    for fits in ({"versions": versions}, {"versions": old}):
        assert only(host(CUDA, cuda_driver=(13, 0), **fits), "from pip").state == "ok"


def test_the_wheels_of_both_cudas_overwrite_each_other() -> None:
    both = without(**{"tensorrt-cu12": "10.16.1.11", "tensorrt-cu13": "10.16.1.11"})
    check = only(host(CUDA, versions=both), "overwrite each other's files")
    assert check.state == "fail"
    assert "uninstall -y tensorrt tensorrt-cu12 tensorrt-cu13" in str(check.fix)


def test_packages_of_a_newer_cuda_than_the_drivers_are_named() -> None:
    versions = without(**{"cuda-bindings": "13.0.1"})
    check = only(host(CUDA, versions=versions, cuda_driver=(12, 9)), "CUDA through")
    assert (check.state, "cuda-bindings<13" in str(check.fix)) == ("fail", True)
    assert only(host(CUDA, versions=versions), "CUDA through").state == "ok"


def test_a_machine_without_a_driver_or_with_an_old_one_is_told_so() -> None:
    check = only(host(CUDA, cuda_driver=None), "no NVIDIA driver")
    assert (check.state, "580" in str(check.fix)) == ("fail", True)
    assert "l4t" in str(only(host(CUDA, cuda_driver=None, jetson=True), "no NVIDIA driver").fix)
    old = only(host(CUDA, cuda_driver=(11, 4)), "runs CUDA 11.4")
    assert (old.state, "525" in str(old.fix)) == ("fail", True)
    assert not [c for c in host(ORIN, cuda_driver=None) if "driver" in c.what]


def test_a_jetson_is_never_told_to_install_a_wheel_nor_a_desktop_to_update_jetpack() -> None:
    lacking = {"tensorrt_place": None, "versions": without("tensorrt"), "cuda_backends": ()}
    old = {"versions": without(tensorrt="8.6.2")}
    for facts in (lacking, old):
        fixes = [str(check.fix) for check in host(CUDA, jetson=True, machine="aarch64", **facts)]
        assert not [fix for fix in fixes if "pip install" in fix]
        assert not [c for c in host(CUDA, **facts) if "JetPack" in f"{c.what} {c.fix}"]


# ------------------------------------------------------------------- gathered on file trees


def venv(folder: Path, *, home: Path, shared: str) -> Path:
    folder.mkdir()
    (folder / "pyvenv.cfg").write_text(
        f"home = {home}\ninclude-system-site-packages = {shared}\nversion = 3.10.12\n"
    )
    return folder


@pytest.fixture
def jetpack(tmp_path: Path) -> Path:
    (tmp_path / "usr/lib/python3.10/dist-packages/tensorrt").mkdir(parents=True)
    return tmp_path


def test_a_venv_without_the_systems_packages_hides_tensorrt(jetpack: Path) -> None:
    closed = venv(jetpack / "v", home=jetpack / "usr/bin", shared="false")
    assert str(doctor.hidden_tensorrt(jetpack, closed)).endswith("dist-packages/tensorrt")


def test_an_open_venv_of_the_systems_python_and_that_python_hide_nothing(jetpack: Path) -> None:
    open_venv = venv(jetpack / "v", home=jetpack / "usr/bin", shared="true")
    assert doctor.hidden_tensorrt(jetpack, open_venv) is None
    assert doctor.hidden_tensorrt(jetpack, jetpack / "usr") is None


def test_another_python_hides_tensorrt_even_with_an_open_venv(jetpack: Path) -> None:
    conda = jetpack / "opt/conda"
    conda.mkdir(parents=True)
    assert doctor.hidden_tensorrt(jetpack, conda) is not None
    other = venv(jetpack / "v", home=conda / "bin", shared="true")
    assert doctor.hidden_tensorrt(jetpack, other) is not None


def test_where_the_system_has_no_tensorrt_none_is_hidden(tmp_path: Path) -> None:
    closed = venv(tmp_path / "v", home=tmp_path / "usr/bin", shared="false")
    assert doctor.hidden_tensorrt(tmp_path, closed) is None


def test_the_file_system_is_that_of_the_nearest_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "proc").mkdir()
    mounts = (
        f"/dev/sda / ext4 rw 0 0\nbroken\nserver:/x {work} nfs4 rw 0 0\nq {work}er xfs rw 0 0\n"
    )
    (tmp_path / "proc/mounts").write_text(mounts)
    monkeypatch.chdir(work)
    assert doctor.host_facts(tmp_path).file_system == "nfs4"
    monkeypatch.chdir(tmp_path)
    assert doctor.host_facts(tmp_path).file_system == "ext4"


# ------------------------------------------------------------------------ the target's machine


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


# -------------------------------------------------------------------------- not supported


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
    reason = doctor.unsupported_reason(nano)
    assert reason is not None
    assert said in reason
    check = only(there(nano), said)
    assert check.state == "fail"
    assert fix in str(check.fix)


@pytest.mark.parametrize("l4t", ["36.4.0", "36.4.7", "36.5.0", "38.2.0", "39.2.1", None])
def test_what_should_work_is_not_refused(nano: dict[str, Any], l4t: str | None) -> None:
    nano["jetson"]["l4t"] = l4t
    assert doctor.unsupported_reason(nano) is None


def test_an_old_tensorrt_on_another_machine_is_refused_too() -> None:
    reason = doctor.unsupported_reason({**WORKER, "runtime_version": "8.6.1"})
    assert reason is not None
    assert "TensorRT 8.6.1" in reason
    assert doctor.unsupported_reason({**WORKER, "runtime": "onnxruntime"}) is None


def test_an_old_board_may_still_run_onnx_runtime(tmp_path: Path) -> None:
    facts = board("xavier_nx", tmp_path, runtime="onnxruntime", runtime_version="1.23.2")
    assert not [check for check in there(facts, CPU) if check.state == "fail"]


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
        check = doctor.start_check(profile, message, "the hint", state_)
        assert check.state == "fail"
        assert message.startswith(check.what)
        assert fix in str(check.fix)
        # Nobody is told to do on one kind of machine what helps on the other alone.
        on_board = "tensorrt-cu" in str(check.fix) or "hwloop[" in str(check.fix)
        assert not (on_board if profile is ORIN else "JetPack" in f"{check.what} {check.fix}")


def test_every_reason_is_kept_and_the_advice_for_other_machines_is_not() -> None:
    reasons = "no way to CUDA (cuda-bindings: not there; cudart: CUDA 11.4 is too old)"
    check = doctor.start_check(CUDA, f"{reasons}; install JetPack's CUDA (or x)", "", DESKTOP)
    assert check.what == reasons
    plain = doctor.start_check(
        CUDA, f"{START}; JetPack's belongs to (x), elsewhere: y", "", DESKTOP
    )
    assert plain.what == START


def test_without_a_word_of_the_machine_a_board_is_taken_for_a_jetson() -> None:
    check = doctor.start_check(ORIN, f"{START}; x", "the hint")
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
    assert advice in str(doctor.start_check(CUDA, START, "", state_).fix)


def test_a_desktop_behind_ssh_gets_the_wheel_for_its_driver_and_not_jetpacks() -> None:
    far = replace(CUDA, transport="ssh", python="/opt/venv/bin/python")
    check = doctor.start_check(far, START, "", DESKTOP)
    assert check.fix == 'there: /opt/venv/bin/python -m pip install "tensorrt-cu12>=10.13,<12"'
    arm = {**DESKTOP, "machine": "aarch64"}
    assert "apt" in str(doctor.start_check(far, START, "", arm).fix)


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
        assert json.dumps(to_json(doctor.board_checks(profile, facts)))


def test_what_a_board_says_cannot_steer_the_terminal(nano: dict[str, Any]) -> None:
    nano["jetson"]["module"] = "\x1b[2J\u202e" + "x" * 10_000
    nano["lock"] = "ada\r\nok    all is well"
    for check in there(nano):
        assert check.what.isprintable()
        assert len(check.what) < 500
