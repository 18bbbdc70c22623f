"""The runtimes that can be had on any machine, each held to what holds for all."""

from __future__ import annotations

import importlib.util

import pytest
from runtime_contract import RuntimeContract

from hwloop.measure.profile_file import load_profile


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
