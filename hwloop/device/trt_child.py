"""Builds run in a process of their own: running out of memory, or a crash, costs one candidate.

The child gets the modules that it needs as files, read through their loaders, because the worker's
own may have been sent over a connection and lie in no file.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hwloop.device import cache
from hwloop.device.trt_build import BuildFailed, BuildRequest, build
from hwloop.device.watchdog import end_with_parent

MODULES = ("cache", "trt_audit", "trt_cache", "trt_build", "trt_child", "watchdog")
GRACE_S = 15.0
"""After the builder's own deadline: to start, to parse, to cancel. Then the child is killed."""

END_TIMEOUT_S = 5.0
LOG_CHARACTERS = 600
FIRST_LINES = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from hwloop.device.trt_child import main; main(sys.argv[1])"
)
OUT_OF_MEMORY = (
    "the builder was killed, most likely out of memory; add swap, lower settings.workspace_mib, or "
    "stop the desktop (sudo systemctl isolate multi-user.target)"
)
_OOM_SCORE = "/proc/self/oom_score_adj"
_FIRST_TO_GO = "1000"


def build_in_child(
    onnx: bytes, request: BuildRequest, *, module: str = "tensorrt", grace_s: float = GRACE_S
) -> tuple[bytes, dict[str, Any]]:
    """:func:`hwloop.device.trt_build.build` in a fresh Python.

    Args:
        module: the name under which the child imports TensorRT.

    Raises:
        BuildFailed: what the builder said, or how the child ended.
    """
    with cache.scratch() as folder:
        _write_modules(folder)
        (folder / "model.onnx").write_bytes(onnx)
        order = {"module": module, "parent": os.getpid(), "request": asdict(request)}
        (folder / "request.json").write_text(json.dumps(order))
        status = _run(folder, request.deadline_s + grace_s)
        record = folder / "record.json"
        if status != 0 or not record.exists():
            raise BuildFailed(_ending(status, folder))
        found: dict[str, Any] = json.loads(record.read_text())
        if "error" in found:
            raise BuildFailed(found["error"])
        return (folder / "plan").read_bytes(), found


def main(name: str) -> None:
    """The child's side: reads the folder's request, writes ``plan`` and then ``record.json``."""
    folder = Path(name)
    order = json.loads((folder / "request.json").read_text())
    _die_with(int(order["parent"]))
    _go_first()
    try:
        trt = importlib.import_module(order["module"])
        onnx = (folder / "model.onnx").read_bytes()
        plan, record = build(onnx, BuildRequest(**order["request"]), trt=trt)
        (folder / "plan").write_bytes(plan)
    except BuildFailed as error:
        record = {"error": str(error)}
    except Exception as error:  # the boundary: whatever the runtime raises is the reason
        record = {"error": f"{type(error).__name__}: {error}"}
    (folder / "record.json").write_text(json.dumps(record))


def _run(folder: Path, timeout_s: float) -> int:
    """The child's exit status. It may not write into our standard output: that is the line."""
    command = [sys.executable, "-c", FIRST_LINES, str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise BuildFailed(
                f"no engine after {timeout_s:.0f} s; the builder was killed"
            ) from error
        finally:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # stuck in the driver: the kernel ends it in time
            return


def _ending(status: int, folder: Path) -> str:
    log = (folder / "log").read_text(errors="replace").strip()[-LOG_CHARACTERS:]
    tail = f": {log}" if log else ""
    if status == -signal.SIGKILL:
        return OUT_OF_MEMORY + tail
    if status < 0:
        return f"the builder crashed with {_signal_name(-status)}{tail}"
    return f"the builder ended with status {status}{tail}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _write_modules(folder: Path) -> None:
    package = folder / "hwloop" / "device"
    package.mkdir(parents=True)
    for empty in (folder / "hwloop", package):
        (empty / "__init__.py").write_text("")
    for name in MODULES:
        (package / f"{name}.py").write_text(_source(f"hwloop.device.{name}"), encoding="utf-8")


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    loader: Any = spec.loader if spec else None
    source = loader.get_source(name) if loader else None
    if source is None:
        raise BuildFailed(f"the source of {name} is nowhere")
    return str(source)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the one that started it ends."""
    end_with_parent()
    if os.getppid() != parent:  # it ended before this line
        os._exit(1)


def _go_first() -> None:
    """Have the kernel take this process when memory runs out, not the worker or sshd."""
    with contextlib.suppress(OSError):  # raising needs no rights; where there is no /proc, no harm
        Path(_OOM_SCORE).write_text(_FIRST_TO_GO)
