"""The doctor on this machine: every line in each of its states, on facts that are given to it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from examined import CPU, CUDA, GOOD, ORIN, host, only, without

from hwloop.measure.doctor.facts import NEEDED, hidden_tensorrt, host_facts
from hwloop.measure.profile_file import load_profile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_a_machine_in_order_has_no_complaint() -> None:
    checks = host(CPU)
    assert {check.state for check in checks} == {"ok"}
    assert not any(check.fix for check in checks)


def test_this_machine_is_examined_without_importing_a_framework() -> None:
    import subprocess

    code = (
        "import sys; from hwloop.measure.doctor.host import host_checks\n"
        "found = host_checks(None); assert found\n"
        "sys.exit(bool({'torch', 'onnx', 'onnxruntime', 'tensorrt'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_the_needed_versions_are_those_of_the_package() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    wanted = {}
    for requirement in tomllib.loads(text)["project"]["dependencies"]:
        name, _, rest = requirement.partition(">=")
        wanted[name] = rest.partition(";")[0].partition(",")[0].strip()
    if sys.version_info >= (3, 11):
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
    assert str(hidden_tensorrt(jetpack, closed)).endswith("dist-packages/tensorrt")


def test_an_open_venv_of_the_systems_python_and_that_python_hide_nothing(jetpack: Path) -> None:
    open_venv = venv(jetpack / "v", home=jetpack / "usr/bin", shared="true")
    assert hidden_tensorrt(jetpack, open_venv) is None
    assert hidden_tensorrt(jetpack, jetpack / "usr") is None


def test_another_python_hides_tensorrt_even_with_an_open_venv(jetpack: Path) -> None:
    conda = jetpack / "opt/conda"
    conda.mkdir(parents=True)
    assert hidden_tensorrt(jetpack, conda) is not None
    other = venv(jetpack / "v", home=conda / "bin", shared="true")
    assert hidden_tensorrt(jetpack, other) is not None


def test_where_the_system_has_no_tensorrt_none_is_hidden(tmp_path: Path) -> None:
    closed = venv(tmp_path / "v", home=tmp_path / "usr/bin", shared="false")
    assert hidden_tensorrt(tmp_path, closed) is None


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
    assert host_facts(tmp_path).file_system == "nfs4"
    monkeypatch.chdir(tmp_path)
    assert host_facts(tmp_path).file_system == "ext4"
