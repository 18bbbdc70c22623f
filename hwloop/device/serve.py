"""The worker's message loop: one request in, one reply out, by id.

Requests are dicts {id, verb, ...}; replies {id, result} or {id, error: {stage, message}}. Blobs
(models, inputs) are sent once, under the digest of their content, and kept until ``forget``.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from typing import Any

import numpy as np

RUNTIMES = {
    "onnxruntime": ("hwloop.device.ort", "OrtRuntime"),
    "fake": ("hwloop.device.fake", "FakeRuntime"),
}
PARENT_POLL_S = 0.5


class Worker:
    """Answers the verbs of one session with one runtime."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        self.models: dict[str, tuple[bytes, dict[str, Any]]] = {}
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        verb = str(request["verb"])
        stage = {"compare": "run", "infer": "score", "build": "build"}.get(verb, "run")
        try:
            result = getattr(self, f"do_{verb}")(request)
        except Exception as error:  # the boundary: whatever a runtime raises becomes a reply
            message = f"{type(error).__name__}: {error}"[:2000]
            return {"id": request["id"], "error": {"stage": stage, "message": message}}
        return {"id": request["id"], "result": result}

    def do_fingerprint(self, request: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.runtime.fingerprint()
        return found

    def do_state(self, request: dict[str, Any]) -> dict[str, Any]:
        from hwloop.device import state

        return {
            "cpu": state.cpu_model(),
            "isa": state.isa(),
            "governor": state.governor(),
            "temperature_c": state.temperature_c(),
            "load_average": state.load_average(),
            "cores": len(state.usable_cores()),
            "pid": os.getpid(),
        }

    def do_put_model(self, request: dict[str, Any]) -> bool:
        self.models[request["digest"]] = (request["data"], request["hints"])
        return True

    def do_put_array(self, request: dict[str, Any]) -> bool:
        flat = np.frombuffer(request["data"], dtype=request["dtype"])
        self.arrays[request["digest"]] = flat.reshape(request["shape"])
        return True

    def do_forget(self, request: dict[str, Any]) -> bool:
        self.models.pop(request["digest"], None)
        return True

    def do_build(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open the engine once and time that, so that a bad graph fails before a measurement."""
        started = time.perf_counter()
        self.runtime.build(*self.models[request["model"]])
        return {"build_s": time.perf_counter() - started}

    def do_compare(self, request: dict[str, Any]) -> dict[str, Any]:
        from hwloop.device import state

        result: dict[str, Any] = self.runtime.compare(
            self.models[request["model"]], self.models[request["reference"]], request["protocol"]
        )
        result["temperature_c"] = state.temperature_c()
        return result

    def do_infer(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        engine = self.runtime.build(*self.models[request["model"]])
        outputs = self.runtime.infer(engine, self.arrays[request["inputs"]])
        return [
            {"dtype": str(value.dtype), "shape": list(value.shape), "data": value.tobytes()}
            for value in outputs
        ]


def serve(channel: Any, runtime_name: str, settings: dict[str, Any]) -> None:
    """Answer requests until the channel closes. Called on the device by the sent bootstrap."""
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    try:
        module, name = RUNTIMES[runtime_name]
        runtime = getattr(importlib.import_module(module), name)(settings)
    except ImportError as error:
        channel.send({"id": 0, "error": {"stage": "start", "message": str(error)}})
        return
    worker = Worker(runtime)
    channel.send({"id": 0, "result": {"pid": os.getpid()}})
    for request in channel:
        channel.send(worker.answer(request))


def _watch_parent(parent: int) -> None:
    """End this process soon after its host is gone, even in the middle of a long call."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)
