"""What the builder's process is before TensorRT is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwloop.device.trt_build import BuildFailed, BuildRequest
from hwloop.device.trt_child import build_in_child

TELLS = """
import os
with open("/proc/self/oom_score_adj") as file:
    score = file.read().strip()
raise ImportError(f"score {score}, order {os.environ.get('CUDA_DEVICE_ORDER')}")
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a child says of itself at the moment when it would import TensorRT."""
    (tmp_path / "tells_of_its_process.py").write_text(TELLS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    with pytest.raises(BuildFailed) as caught:
        build_in_child(b"", BuildRequest(), module="tells_of_its_process")
    return str(caught.value)


def test_the_builder_is_the_first_that_the_kernel_takes(told: str) -> None:
    assert "score 1000," in told
    assert Path("/proc/self/oom_score_adj").read_text().strip() != "1000"  # the worker's own


def test_the_builder_counts_gpus_as_the_worker_does(told: str) -> None:
    assert told.endswith("order PCI_BUS_ID")
