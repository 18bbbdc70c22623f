"""Which wheel, which driver: what helps where TensorRT and CUDA do not fit each other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from examined import CUDA, ORIN, host, only, without

from hwloop.measure.doctor import wheels
from hwloop.measure.doctor.facts import cuda_driver

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
    assert cuda_driver(lambda name: Driver(12040)) == (12, 4)
    assert cuda_driver(lambda name: Driver(13020)) == (13, 2)
    assert cuda_driver(lambda name: Driver(13020, status=100)) is None
    assert cuda_driver(lambda name: object()) is None
    assert cuda_driver(absent) is None


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
