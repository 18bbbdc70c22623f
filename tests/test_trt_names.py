"""Every name of TensorRT's API in our sources, against what NVIDIA's releases really have.

tests/data/trt_api_names.json is made by benchmarks/trt_names.py from NVIDIA's own modules.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fake_trt
import pytest

ROOT = Path(__file__).parent.parent
RECORDED: dict[str, Any] = json.loads((ROOT / "tests/data/trt_api_names.json").read_text())
REFRESH = "python benchmarks/trt_names.py"
# Only TensorRT for RTX builds for a GPU that is named; the builder asks for it on request alone.
RTX_ONLY = {
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}
FAKES = {
    "INetworkDefinition": "Network",
    "IBuilderConfig": "Config",
    "ICudaEngine": "Engine",
    "IExecutionContext": "Context",
    "EngineInspector": "Inspector",
    "ITimingCache": "TimingCache",
    "ILayer": "Layer",
    "ParserError": "Problem",
}


@pytest.fixture(scope="module")
def used() -> dict[str, bool]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from trt_names import used_names
    finally:
        sys.path.pop(0)
    return used_names()


def test_every_supported_line_was_probed() -> None:
    lines = {version.rsplit(".", 1)[0].partition(".")[0] for version in RECORDED["versions"]}
    assert {"10", "11", "rtx 1"} <= lines
    assert "10.3.0" in RECORDED["versions"]


def test_every_name_that_is_used_was_looked_up(used: dict[str, bool]) -> None:
    assert len(used) > 50
    assert set(used) == set(RECORDED["names"]), f"sources changed: {REFRESH}"


def test_every_name_exists_in_every_release_or_is_asked_for(used: dict[str, bool]) -> None:
    for name, guarded in used.items():
        missing = set(RECORDED["versions"]) - set(RECORDED["names"][name])
        if guarded or not missing:
            continue
        assert name in RTX_ONLY, f"{name} is not in TensorRT {', '.join(sorted(missing))}"


def test_what_was_removed_in_11_is_not_used(used: dict[str, bool]) -> None:
    gone = ("EXPLICIT_BATCH", "BuilderFlag.FP16", "BuilderFlag.INT8", "max_workspace_size")
    assert not [name for name in used for part in gone if name.endswith(part)]


def test_the_fake_has_the_names_that_are_used(used: dict[str, bool]) -> None:
    for name in set(used) - RTX_ONLY:
        owner, _, member = name.partition(".")
        if owner in ("ITensor", "ILogger", "IProgressMonitor"):  # ours, or without members
            continue
        if not member:
            assert hasattr(fake_trt, owner), f"the fake lacks {name}"
            continue
        fake = getattr(fake_trt, FAKES.get(owner, owner))
        known = (*dir(fake), *getattr(fake, "KNOWN", ()))
        assert member in known, f"the fake lacks {name}"
