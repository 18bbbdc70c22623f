"""The runtimes that can be had on any machine, each held to what holds for all."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest
from runtime_contract import RuntimeContract

from hwloop.device import runtime as runtimes
from hwloop.device.serve import RUNTIMES
from hwloop.measure.profile_file import load_profile
from hwloop.runtimes import known

METHODS = {
    runtimes.ENERGY: "running",
    runtimes.COPIES: "copies",
    runtimes.LAUNCH_FLOOR: "launch_floor",
    runtimes.ENGINE: "engine_file",
    runtimes.LAYER_PROFILE: "layer_profile",
    runtimes.CROSS_CHECK: "cross_check",
}
SETTINGS = {"fake": {"engine_bytes": 8}}
"""With which a runtime can do all that it ever can."""


class TestOnnxRuntime(RuntimeContract):
    profile = load_profile("cpu")


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason='pip install "hwloop[openvino]"'
)
class TestOpenVino(RuntimeContract):
    profile = load_profile("openvino")


class TestFake(RuntimeContract):
    profile = load_profile("fake")
    noise = 0.0


def on_the_device(name: str) -> type[Any]:
    """A runtime's class there; that of TensorRT needs no TensorRT."""
    module, kind = RUNTIMES[name]
    try:
        found: type[Any] = getattr(importlib.import_module(module), kind)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    return found


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_declares_what_it_has_and_nothing_else(name: str) -> None:
    """Without a device: also of one that this machine cannot have."""
    found = on_the_device(name)
    declared = found(SETTINGS[name]).capabilities if name in SETTINGS else found.capabilities
    assert set(METHODS) == runtimes.CAPABILITIES
    assert declared == {
        word
        for word, method in METHODS.items()
        if getattr(found, method) is not getattr(runtimes.Runtime, method)
    }


@pytest.mark.parametrize("name", RUNTIMES)
def test_both_sides_of_a_runtime_mean_the_same_one(name: str) -> None:
    found = on_the_device(name)
    assert found.name == known.named(name).name == name
    assert found.on_gpu == known.named(name).on_gpu


def test_every_runtime_has_two_sides() -> None:
    assert {kind.name for kind in known.RUNTIMES} == set(RUNTIMES)
