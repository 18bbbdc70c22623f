"""A deterministic device for tests and rehearsals: real outputs, computed latencies.

Latency is a roofline over the rows that the host names in ``hints``: no clock is read, so two
runs give the same figures on any machine. Its figures are ``simulated`` wherever they are shown.
``settings["faults"]`` injects failures; see :class:`FakeRuntime`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import time
from typing import Any

import numpy as np

from hwloop.device.runtime import ENGINE, Model, Runtime

ROOFLINE = {
    "device": "simulated roofline",
    "gmacs_per_s": {"fp32": 20.0, "fp16": 40.0, "int8": 26.0},
    "gbytes_per_s": 8.0,
}
ITEM_BYTES = {"fp32": 4, "fp16": 2, "int8": 1, "fp8": 1}
ROW_OVERHEAD_MS = 0.004
RIPPLE = (1.0, 1.0, 1.002, 1.004, 1.006)  # a small fixed one, so that there is no randomness
ROUNDS = 5


class FakeRuntime(Runtime):
    """Same verbs as a real runtime.

    Args:
        settings: ``roofline``: device, gmacs_per_s by precision, gbytes_per_s. ``faults`` maps
            a verb to ``{"kind": ..., "after": n, "times": m}``: from the n-th call on, m times,
            the worker dies (``die``), never answers (``hang``), answers nonsense
            (``nonsense``), refuses the candidate (``refuse``), or fails for good, as with a sticky
            error of CUDA (``lost``). ``start_hold_s``: seconds that the start takes, with the
            interpreter held as loading a large library holds it. ``engine_bytes``: size of the
            engine files; without it there are none. ``fixed``: what was derived at the start.
    """

    name = "fake"

    def __init__(self, settings: dict[str, Any]) -> None:
        self.faults = dict(settings.get("faults", {}))
        self.roofline = dict(settings.get("roofline", ROOFLINE))
        self.calls = {"build": 0, "compare": 0, "infer": 0}
        self.settings = settings
        self.broken: str | None = None
        self.capabilities = frozenset((ENGINE,) if settings.get("engine_bytes") else ())
        if settings.get("start_hold_s"):
            ctypes.PyDLL(None).sleep(int(settings["start_hold_s"]))

    def fixed(self) -> dict[str, Any]:
        return dict(self.settings.get("fixed", {}))

    def lost(self) -> str | None:
        return self.broken

    def fingerprint(self) -> dict[str, Any]:
        return {
            "device": self.roofline["device"],
            "runtime": self.name,
            "runtime_version": "1",
            "settings": [
                ["gbytes_per_s", str(self.roofline["gbytes_per_s"])],
                ["gmacs_per_s", str(sorted(self.roofline["gmacs_per_s"].items()))],
            ],
        }

    def build(self, model: bytes, hints: dict[str, Any]) -> Any:
        self._fault("build")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def compare(
        self,
        candidate: Model,
        reference: Model,
        protocol: dict[str, Any],
    ) -> dict[str, Any]:
        kind = self._fault("compare")
        ms = latency_ms(candidate[1]["configs"], self.roofline)
        base = latency_ms(reference[1]["configs"], self.roofline)
        if kind == "nonsense":
            ms = -1.0
        return {
            "samples_ms": [ms * factor for factor in RIPPLE * ROUNDS],
            "reference_ms": [base] * len(RIPPLE) * ROUNDS,
            "rounds": [len(RIPPLE)] * ROUNDS,
            "clock": "wall",
            "warmup_count": 1,
            "stopped": "count",
        }

    def infer(self, session: Any, inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        self._fault("infer")
        name = session.get_inputs()[0].name
        results = [session.run(None, {name: inputs[i : i + 1]}) for i in range(len(inputs))]
        return [np.concatenate(parts) for parts in zip(*results)]  # noqa: B905

    def engine_file(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        """Numbers in the place of an engine, each part of it another."""
        size_bytes = int(self.settings["engine_bytes"])
        data = np.arange(-(-size_bytes // 8), dtype=np.int64).tobytes()[:size_bytes]
        return {"data": data, "sha256": hashlib.sha256(data).hexdigest(), "audit": {"layers": 1}}

    def _fault(self, verb: str) -> str | None:
        self.calls[verb] += 1
        fault = self.faults.get(verb)
        if not fault:
            return None
        first = int(fault.get("after", 1))
        if not first <= self.calls[verb] < first + int(fault.get("times", 1 << 30)):
            return None
        if fault["kind"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault["kind"] == "hang":
            time.sleep(3600)
        if fault["kind"] == "lost":
            self.broken = "the GPU cannot be used by this process any more"
            raise RuntimeError("an illegal memory access was encountered")
        if fault["kind"] == "refuse":
            raise RuntimeError("no kernel for this layer")
        return str(fault["kind"])


def latency_ms(configs: list[dict[str, Any]], roofline: dict[str, Any]) -> float:
    """Roofline: each row takes the longer of its arithmetic and its traffic, plus a constant."""
    return sum(_row_ms(config, roofline) for config in configs)


def _row_ms(config: dict[str, Any], roofline: dict[str, Any]) -> float:
    shape = config["in_shape"]
    outputs = shape[0] * config["out_channels"]
    resizes = config["op"] == "resize"
    for size, kernel, stride, padding in zip(  # noqa: B905 - linear has no spatial axes
        shape[2:], config["kernel"], config["stride"], config["padding"]
    ):
        outputs *= kernel if resizes else (size + 2 * padding - kernel) // stride + 1
    per_output = shape[1] // config["groups"] * config["kernel"][0] * config["kernel"][1]
    weighted = config["op"] in ("conv", "linear")
    macs = outputs * per_output if weighted else 0
    macs //= 2 if config.get("sparsity") == "2:4" else 1
    traffic = (int(np.prod(shape)) + outputs) * ITEM_BYTES[config["precision"]]
    rates = roofline["gmacs_per_s"]  # FP8 is of the same bytes as INT8 where nothing is said of it
    compute_ms = macs / rates.get(config["precision"], rates["int8"]) / 1e6
    return float(max(compute_ms, traffic / roofline["gbytes_per_s"] / 1e6) + ROW_OVERHEAD_MS)
