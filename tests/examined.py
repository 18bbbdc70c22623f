"""Machines to examine: facts of this one, answers of a board, and how a line is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from test_jetson import plant

from hwloop.device import state
from hwloop.measure.doctor.board import board_checks
from hwloop.measure.doctor.check import Check
from hwloop.measure.doctor.facts import NEEDED, HostFacts
from hwloop.measure.doctor.host import host_checks
from hwloop.measure.profile import TargetProfile
from hwloop.measure.profile_file import load_profile

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
    return host_checks(profile, replace(GOOD, **changes))


def without(*names: str, **more: str) -> dict[str, str]:
    kept = {name: version for name, version in GOOD.versions.items() if name not in names}
    return {**kept, **more}


def only(checks: list[Check], text: str) -> Check:
    found = [check for check in checks if text in check.what]
    assert len(found) == 1, f"{text!r} in {[check.what for check in checks]}"
    return found[0]


def board(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    return {**state.snapshot(plant(name, folder)), **WORKER, **changes}


def there(facts: dict[str, Any], profile: TargetProfile = ORIN) -> list[Check]:
    return board_checks(profile, facts)
