"""A session with a board that is played: what its worker answers is an attribute of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from graphs import row_onnx
from test_jetson import plant

from hwloop.device import state
from hwloop.device.recordings import recordings
from hwloop.errors import CandidateError, TargetError
from hwloop.findings import Fingerprint
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.rowkinds import INT8_KINDS

FLOOR = {"single_ms": 0.0124, "in_graph_ms": 0.0031, "runs_per_graph": 32, "host_share": 0.4}
PROFILE = {"layers": 34, "reformats": 3, "reformat_share": 0.042, "source": "trtexec 10.3.0"}
POWER = {
    "energy_mj": 3.21,
    "mean_mw": 11200.0,
    "idle_mw": 4100.0,
    "samples": 50,
    "runs": 9000,
    "rails": ["VDD_IN"],
    "source": "VDD_IN",
}
KIND_OF_GRAPH = {row_onnx(config, "tensorrt"): kind for kind, config in INT8_KINDS}


class PlayedBoard:
    """Stands in for DeviceSession; ``opened`` and ``built`` tell what was done with it.

    Attributes:
        refuses: the reason by kind of INT8 row.
        lost_in: the method in which the target is lost, if any.
    """

    isa = ""
    locks = True
    fingerprint = Fingerprint(device="Orin", runtime="tensorrt", runtime_version="10.3.0")

    def __init__(self, folder: Path, board: str = "orin_nano", **answers: Any) -> None:
        self.root = folder if not board else plant(board, folder)
        self.import_s: dict[str, float] = {"numpy": 0.31, "tensorrt": 4.2}
        self.floor: Any = FLOOR
        self.profile: Any = PROFILE
        self.power: Any = POWER
        self.refuses: dict[str, str] = {}
        self.lost_in = ""
        self.opened = self.closed = 0
        self.built: list[str] = []
        self.rows: list[bool] = []
        for name, value in answers.items():
            setattr(self, name, value)

    def __enter__(self) -> PlayedBoard:
        self.opened += 1
        return self

    def __exit__(self, *exception: object) -> None:
        self.closed += 1

    def state(self) -> dict[str, Any]:
        found = state.snapshot(self.root)
        return {**found, "pid": 4711, "python": "3.10.12", "numpy": "1.26.4", "runtime": "x"}

    def build(self, model: OnnxModel) -> float:
        self._maybe_lost("build")
        kind = KIND_OF_GRAPH[model.data]
        self.built.append(kind)
        self.rows.append(bool(getattr(model, "row", False)))
        if kind in self.refuses:
            raise CandidateError("build", self.refuses[kind])
        return 1.5

    def holding(self, model: OnnxModel) -> AbstractContextManager[Any]:
        return nullcontext(model)

    def launch_floor(self, model: OnnxModel) -> Any:
        self._maybe_lost("launch_floor")
        return self._answer(self.floor)

    def layer_profile(self, model: OnnxModel) -> Any:
        self._maybe_lost("layer_profile")
        return self._answer(self.profile)

    def energy(self, model: OnnxModel, *, seconds: float) -> Any:
        return self._answer(self.power)

    def recordings(self) -> Any:
        self._maybe_lost("recordings")
        return recordings(self.root)

    def _answer(self, value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def _maybe_lost(self, method: str) -> None:
        if method == self.lost_in:
            raise TargetError("the board is gone", "look at its power supply")
