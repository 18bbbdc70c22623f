"""The worker's message loop: one request in, one reply out, by id.

Requests are dicts {id, token, verb, ...}; replies {id, result} or {id, error: {stage, message}}.
Blobs (models, inputs) are sent once, in parts, under the digest of their content, and kept until
``forget``. A token names a piece of work across connections: what was done under it is not done
again.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import os
import platform
import signal
import threading
import time
from typing import Any

import numpy as np

from hwloop.device import SettingsRefused
from hwloop.device.lock import BoardBusy, acquire
from hwloop.device.replies import Replies

RUNTIMES = {
    "onnxruntime": ("hwloop.device.ort", "OrtRuntime"),
    "tensorrt": ("hwloop.device.trt", "TrtRuntime"),
    "fake": ("hwloop.device.fake", "FakeRuntime"),
}
STAGES = {"infer": "score", "build": "build", "engine": "build"}  # elsewhere: run
PARENT_POLL_S = 0.5
TELEMETRY_OFF = ("ORT_DISABLE_TELEMETRY", "1")
"""ONNX Runtime would report what it runs, in the middle of timing it; see hwloop.host_runtime."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Worker:
    """Answers the verbs of one session with one runtime."""

    def __init__(self, runtime: Any, replies: Replies | None = None) -> None:
        self.runtime = runtime
        self.replies = replies
        self.parts: dict[str, bytearray] = {}
        self.models: dict[str, tuple[bytes, dict[str, Any]]] = {}
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked, or say what was done when it was asked before."""
        token = str(request.get("token", ""))
        reply = self.replies.find(token) if self.replies else None
        if reply is None:
            reply = self._do(request)
            if self.replies:
                self.replies.keep(token, reply)
        return {**reply, "id": request["id"]}

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        verb = str(request["verb"])
        try:
            result = getattr(self, f"do_{verb}")(request)
        except Exception as error:  # the boundary: whatever a runtime raises becomes a reply
            message = f"{type(error).__name__}: {error}"[:2000]
            return {"error": {"stage": STAGES.get(verb, "run"), "message": message}}
        return {"result": result}

    def do_fingerprint(self, request: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.runtime.fingerprint()
        return found

    def do_state(self, request: dict[str, Any]) -> dict[str, Any]:
        from hwloop.device import state

        return {
            **state.snapshot(),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }

    def do_put(self, request: dict[str, Any]) -> bool:
        """One part of a blob; the last one has its digest checked. Parts have no reply."""
        digest = request["digest"]
        if request["offset"] == 0:
            self.parts[digest] = bytearray()
        self.parts.setdefault(digest, bytearray()).extend(request["data"])
        return True

    def do_put_model(self, request: dict[str, Any]) -> bool:
        self.models[request["digest"]] = (self._whole(request["digest"]), request["hints"])
        return True

    def do_put_array(self, request: dict[str, Any]) -> bool:
        flat = np.frombuffer(self._whole(request["digest"]), dtype=request["dtype"])
        self.arrays[request["digest"]] = flat.reshape(request["shape"])
        return True

    def _whole(self, digest: str) -> bytes:
        data = bytes(self.parts.pop(digest))
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError("what arrived is not what was sent")
        return data

    def do_forget(self, request: dict[str, Any]) -> bool:
        self.models.pop(request["digest"], None)
        self.arrays.pop(request["digest"], None)
        return True

    def do_drop(self, request: dict[str, Any]) -> bool:
        """The host has the reply of an earlier token."""
        if self.replies:
            self.replies.drop(str(request["done"]))
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

    def do_engine(self, request: dict[str, Any]) -> dict[str, Any]:
        """The built engine as a file, with its audit; only runtimes that build one have it."""
        found: dict[str, Any] = self._engines("engine_file")(*self.models[request["model"]])
        return found

    def do_energy(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Energy per inference, where there are power rails and inferences are real."""
        from hwloop.device import power

        running = getattr(self.runtime, "running", None)
        if running is None:
            return None
        with running(*self.models[request["model"]]) as run:
            on_gpu = self.runtime.name == "tensorrt"
            return power.energy_mj(run, seconds=float(request["seconds"]), on_gpu=on_gpu)

    def do_cross_check(self, request: dict[str, Any]) -> dict[str, Any]:
        """The same engine timed by the vendor's own tool."""
        found: dict[str, Any] = self._engines("cross_check")(*self.models[request["model"]])
        return found

    def _engines(self, method: str) -> Any:
        """A method that only runtimes with engines of their own have."""
        found = getattr(self.runtime, method, None)
        if found is None:
            raise ValueError(f"{self.runtime.name} has no engines; TensorRT has")
        return found

    def do_infer(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        engine = self.runtime.build(*self.models[request["model"]])
        outputs = self.runtime.infer(engine, self.arrays[request["inputs"]])
        return [
            {"dtype": str(value.dtype), "shape": list(value.shape), "data": value.tobytes()}
            for value in outputs
        ]


def serve(channel: Any, pulse: Any, options: dict[str, Any]) -> None:
    """Answer requests until the channel closes. Called on the device by the sent bootstrap.

    Args:
        pulse: a second channel: what arrives is sent back, and proves that the host is there.
        options: runtime, settings; lock: whether to hold the board, and supersedes: processes
            that this session lost; remote: a link may break between work and reply, so replies
            are kept; silence_s: how long a silence of the host ends this process.
    """
    silence_s = int(options["silence_s"])
    _end_when_alone(pulse, silence_s)
    if options["remote"]:
        _end_with_parent()
    try:
        lock = acquire(options["supersedes"]) if options["lock"] else None
        os.environ.setdefault(*TELEMETRY_OFF)
        module, name = RUNTIMES[options["runtime"]]
        runtime = getattr(importlib.import_module(module), name)(options["settings"])
    except BoardBusy as error:
        channel.send({"id": 0, "error": {"stage": "busy", "message": str(error)}})
        return
    except SettingsRefused as error:
        channel.send({"id": 0, "error": {"stage": "settings", "message": str(error)}})
        return
    except Exception as error:  # the boundary: the host says what is missing, and what helps
        message = f"{type(error).__name__}: {error}"[:2000]
        channel.send({"id": 0, "error": {"stage": "start", "message": message}})
        return
    worker = Worker(runtime, Replies() if options["remote"] else None)
    channel.send({"id": 0, "result": {"pid": os.getpid()}})
    for request in channel:
        signal.alarm(silence_s)
        if request["verb"] == "put":
            worker.do_put(request)
        else:
            channel.send(worker.answer(request))
    if lock is not None:
        lock.close()


def _end_when_alone(pulse: Any, silence_s: int) -> None:
    """End this process when its host is gone, even in the middle of a long call.

    The alarm ends it without any Python running, so a runtime that holds the interpreter, or is
    stuck in a driver, ends as well.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(silence_s)

    def hear(beat: Any) -> None:
        signal.alarm(silence_s)
        pulse.send(beat)

    pulse.setcallback(hear)
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent() -> None:
    """Have the kernel kill this process with the one that started it, even while it is stopped.

    Only behind sshd: the kernel means the thread that started it, which on a host may end earlier.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)
