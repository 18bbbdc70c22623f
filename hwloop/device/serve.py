"""The worker's message loop: one request in, one reply out, by id.

Requests are dicts {id, token, verb, ...}; replies {id, result} or {id, error: {stage, message}}.
Nothing large is in one message, so that the pulse gets through between them on a slow link. Models
and inputs arrive in parts (``put``) under the digest of their content; a large value of a result is
put aside, stands in the reply as {blob, size_bytes}, and is fetched in parts (``take``). A token
names a piece of work across connections: what was done under it is not done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import platform
import time
from typing import Any

import numpy as np

from hwloop.device import SettingsRefused
from hwloop.device import runtime as runtimes
from hwloop.device.lock import BoardBusy, acquire
from hwloop.device.replies import Replies
from hwloop.device.watchdog import Watchdog

RUNTIMES = {
    "onnxruntime": ("hwloop.device.ort", "OrtRuntime"),
    "openvino": ("hwloop.device.ov", "OpenVinoRuntime"),
    "tensorrt": ("hwloop.device.trt", "TrtRuntime"),
    "fake": ("hwloop.device.fake", "FakeRuntime"),
}
STAGES = {"infer": "score", "build": "build", "engine": "build"}  # elsewhere: run
LOST = "lost"
"""Stage of an error that says: this process can do no more; a new one may."""

INLINE_BYTES = 256 << 10
"""Larger values are put aside, and no part of one is larger."""

TRANSPORT = ("put", "take", "forget")
ENVIRONMENT = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi counts; CUDA's own order is by speed
    # ONNX Runtime would report what it runs, in the middle of timing it; see hwloop.runtimes.host
    "ORT_DISABLE_TELEMETRY": "1",
}


class Worker:
    """Answers the verbs of one session with one runtime.

    Attributes:
        lost: why this process can do no more; empty while it can.
    """

    def __init__(self, runtime: runtimes.Runtime, replies: Replies | None = None) -> None:
        self.runtime = runtime
        self.replies = replies
        self.lost = ""
        self.parts: dict[str, bytearray] = {}
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, tuple[bytes, dict[str, Any]]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked, or say what was done when it was asked before."""
        if request["verb"] in TRANSPORT:
            return {**self._do(request), "id": request["id"]}
        self.blobs.clear()  # the host has what it wanted of the reply before
        token = str(request.get("token", ""))
        reply = self.replies.find(token) if self.replies else None
        if reply is None:
            reply = self._do(request)
            if self.replies and not self.blobs and not self.lost:
                self.replies.keep(token, reply)
        self.parts.clear()  # also those of a request whose reply was kept
        return {**reply, "id": request["id"]}

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        verb = str(request["verb"])
        try:
            result = getattr(self, f"do_{verb}")(request)
            if isinstance(result, dict):
                result = {name: self._put_aside(value) for name, value in result.items()}
        except Exception as error:  # the boundary: whatever a runtime raises becomes a reply
            message = f"{type(error).__name__}: {error}"[:2000]
            self.lost = self._why_lost()
            if self.lost:
                return {"error": {"stage": LOST, "message": f"{self.lost}; {message}"[:2000]}}
            return {"error": {"stage": STAGES.get(verb, "run"), "message": message}}
        return {"result": result}

    def _why_lost(self) -> str:
        """Why the runtime can be used no more; a graphics card remembers some errors for good."""
        try:
            return str(self.runtime.lost() or "")
        except Exception as error:  # the boundary again: a probe that fails is an answer
            return f"{type(error).__name__}: {error}"[:500]

    def _put_aside(self, value: Any) -> Any:
        if not isinstance(value, bytes) or len(value) <= INLINE_BYTES:
            return value
        digest = hashlib.sha256(value).hexdigest()
        self.blobs[digest] = value
        return {"blob": digest, "size_bytes": len(value)}

    # --------------------------------------------------------------------------- transport

    def do_put(self, request: dict[str, Any]) -> bool:
        """One part of a blob, in order."""
        digest = request["digest"]
        if request["offset"] == 0:
            self.parts[digest] = bytearray()
        self.parts[digest].extend(request["data"])
        return True

    def do_take(self, request: dict[str, Any]) -> bytes:
        """One part of what was put aside."""
        start = int(request["offset"])
        end = start + min(int(request["size_bytes"]), INLINE_BYTES)
        return self.blobs[request["blob"]][start:end]

    def do_forget(self, request: dict[str, Any]) -> bool:
        """Free a model, or what was put aside."""
        self.models.pop(request["digest"], None)
        self.blobs.pop(request["digest"], None)
        return True

    def do_drop(self, request: dict[str, Any]) -> bool:
        """The host has the reply of an earlier token."""
        if self.replies:
            self.replies.drop(str(request["done"]))
        return True

    def do_put_model(self, request: dict[str, Any]) -> bool:
        """Keep a model that has arrived, under the name by which the host will ask for it."""
        self.models[request["model"]] = (bytes(self._whole(request["digest"])), request["hints"])
        return True

    def _whole(self, digest: str) -> bytearray:
        data = self.parts.pop(digest)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError("what arrived is not what was sent")
        return data

    # --------------------------------------------------------------------------------- work

    def do_fingerprint(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.runtime.fingerprint()

    def do_state(self, request: dict[str, Any]) -> dict[str, Any]:
        from hwloop.device import state

        return {
            **state.snapshot(),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }

    def do_recordings(self, request: dict[str, Any]) -> dict[str, Any]:
        """The machine's own files, for the tests of those who have none like it."""
        from hwloop.device.recordings import recordings

        return recordings()

    def do_build(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open the engine once and time that, so that a bad graph fails before a measurement."""
        started = time.perf_counter()
        self.runtime.build(*self.models[request["model"]])
        return {"build_s": time.perf_counter() - started}

    def do_compare(self, request: dict[str, Any]) -> dict[str, Any]:
        from hwloop.device import state

        result = self.runtime.compare(
            self.models[request["model"]], self.models[request["reference"]], request["protocol"]
        )
        result["temperature_c"] = state.temperature_c()
        return result

    def do_infer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The first output for the inputs that have arrived, which are not kept.

        Returns:
            dtype, shape, data; all_bytes: size of all outputs, which decides how many inputs the
            host sends at once.
        """
        flat = np.frombuffer(self._whole(request["inputs"]), dtype=request["dtype"])
        engine = self.runtime.build(*self.models[request["model"]])
        outputs = self.runtime.infer(engine, flat.reshape(request["shape"]))
        first = outputs[0]
        return {
            "dtype": str(first.dtype),
            "shape": list(first.shape),
            "data": first.tobytes(),
            "all_bytes": sum(value.nbytes for value in outputs),
        }

    def do_engine(self, request: dict[str, Any]) -> dict[str, Any]:
        """The built engine as a file, with its audit; only runtimes that build one have it."""
        return self._engines(runtimes.ENGINE).engine_file(*self.models[request["model"]])

    def do_energy(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Energy per inference, where there are power rails and inferences are real."""
        from hwloop.device import power

        if runtimes.ENERGY not in self.runtime.capabilities:
            return None
        seconds, on_gpu = float(request["seconds"]), self.runtime.on_gpu
        with self.runtime.running(*self.models[request["model"]]) as run:
            return power.energy_mj(run, seconds=seconds, on_gpu=on_gpu)

    def do_copies(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """One copy in, run and copy out, beside the run alone; None where nothing is copied."""
        if runtimes.COPIES not in self.runtime.capabilities:
            return None
        return self.runtime.copies(*self.models[request["model"]])

    def do_launch_floor(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """What starting an inference costs; None where nothing is launched."""
        if runtimes.LAUNCH_FLOOR not in self.runtime.capabilities:
            return None
        return self.runtime.launch_floor(*self.models[request["model"]])

    def do_layer_profile(self, request: dict[str, Any]) -> dict[str, Any]:
        """The engine's layers, and the share of its time that goes into changes of layout."""
        return self._engines(runtimes.LAYER_PROFILE).layer_profile(*self.models[request["model"]])

    def do_cross_check(self, request: dict[str, Any]) -> dict[str, Any]:
        """The same engine timed by the vendor's own tool."""
        return self._engines(runtimes.CROSS_CHECK).cross_check(*self.models[request["model"]])

    def _engines(self, capability: str) -> runtimes.Runtime:
        """The runtime, if it can do what only those with engines of their own can."""
        if capability not in self.runtime.capabilities:
            raise ValueError(f"{self.runtime.name} has no engines; TensorRT has")
        return self.runtime


def serve(channel: Any, watchdog: Watchdog, options: dict[str, Any]) -> None:
    """Answer requests until the channel closes. Called on the device by the sent bootstrap.

    Args:
        options: runtime, settings; lock: whether to hold the board, and supersedes: processes
            that this session lost; remote: a link may break between work and reply, so replies
            are kept; import_s: seconds of the imports so far, by package.
    """
    for name, value in ENVIRONMENT.items():  # before anything that reads it is imported
        os.environ.setdefault(name, value)
    try:
        lock = acquire(options["supersedes"]) if options["lock"] else None
        import_s, made = _imported(options["runtime"])
        runtime: runtimes.Runtime = made(options["settings"])
        fixed = runtime.fixed()
    except Exception as error:  # the boundary: the host says what is missing, and what helps
        channel.send({"id": 0, "error": _refusal(error)})
        return
    worker = Worker(runtime, Replies() if options["remote"] else None)
    watchdog.started()
    hello = {
        "pid": os.getpid(),
        "fixed": fixed,
        "import_s": {**options["import_s"], **import_s},
        "capabilities": sorted(runtime.capabilities),
        "cache_bytes": runtime.cache_bytes,
    }
    channel.send({"id": 0, "result": hello})
    for request in channel:
        watchdog.heard()
        channel.send(worker.answer(request))
        if worker.lost:
            os._exit(1)  # in order is no longer possible: freeing what it holds fails as well
    if lock is not None:
        lock.close()


def _refusal(error: Exception) -> dict[str, str]:
    for kind, stage in ((BoardBusy, "busy"), (SettingsRefused, "settings")):
        if isinstance(error, kind):
            return {"stage": stage, "message": str(error)}
    return {"stage": "start", "message": f"{type(error).__name__}: {error}"[:2000]}


def _imported(name: str) -> tuple[dict[str, float], type[Any]]:
    """Seconds that the import of a runtime and of its package took, and its class.

    What cannot be imported of the package is told by the runtime when it is made.
    """
    module, kind = RUNTIMES[name]
    started = time.perf_counter()
    made = getattr(importlib.import_module(module), kind)
    if not made.package:
        return {}, made
    with contextlib.suppress(ImportError, OSError):
        importlib.import_module(made.package)
    return {made.package: time.perf_counter() - started}, made
