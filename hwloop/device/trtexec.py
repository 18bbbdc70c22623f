"""NVIDIA's own stopwatch as a second opinion: the same engine under ``trtexec``.

Its defaults changed in 11.0 (CUDA graph, spin wait and no transfers became the default), so every
flag is given for the version at hand, and the same thing is timed by both.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

JETSON_PATH = "/usr/src/tensorrt/bin/trtexec"
INSTALL = "on a Jetson: sudo apt-get install libnvinfer-bin; elsewhere it is in TensorRT's archive"
WARM_UP_MS = 500
DURATION_S = 3
DEADLINE_S = 120.0
LOG_CHARACTERS = 600
FLIPPED_IN = 11
_BANNER = re.compile(r"\[TensorRT v(\d+)\]")


class TrtexecFailed(Exception):
    """No second opinion; the message is the reason."""


def find() -> str:
    """Path of the program. Raises TrtexecFailed where there is none."""
    if Path(JETSON_PATH).is_file():
        return JETSON_PATH
    found = shutil.which("trtexec")
    if found is None:
        raise TrtexecFailed(f"trtexec is neither at {JETSON_PATH} nor on the PATH; {INSTALL}")
    return found


def command(
    version: str, engine: str, *, times: str, cuda_graph: bool, program: str = "trtexec"
) -> list[str]:
    """The argument list that times the GPU alone: no transfers, spinning, one stream.

    Args:
        version: of TensorRT, e.g. ``10.3.0``; decides which flags exist.
        engine, times: paths of the engine and of the JSON file that is written.
        cuda_graph: as in the timing that it is compared with.
    """
    common = [
        program,
        f"--loadEngine={engine}",
        f"--exportTimes={times}",
        f"--warmUp={WARM_UP_MS}",
        f"--duration={DURATION_S}",
        "--device=0",
        "--infStreams=1",
    ]
    if int(version.split(".")[0]) >= FLIPPED_IN:
        return common if cuda_graph else [*common, "--noCudaGraph"]
    graph = ["--useCudaGraph"] if cuda_graph else []
    return [*common, "--useSpinWait", "--noDataTransfers", *graph]


def compute_ms(text: str) -> list[float]:
    """GPU milliseconds of each run in the JSON of ``--exportTimes``. Raises TrtexecFailed."""
    try:
        times = [float(run["computeMs"]) for run in json.loads(text)]
    except (ValueError, KeyError, TypeError) as error:
        raise TrtexecFailed(f"trtexec wrote times that are none: {error!r}") from error
    if not times:
        raise TrtexecFailed("trtexec wrote no times")
    return times


def banner_version(text: str) -> str | None:
    """``10.3.0`` from ``[TensorRT v100300]``, None where there is no such banner."""
    match = _BANNER.search(text)
    if match is None:
        return None
    number = int(match.group(1))
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def cross_check(
    plan: bytes,
    *,
    version: str,
    cuda_graph: bool,
    program: str | None = None,
    deadline_s: float = DEADLINE_S,
) -> dict[str, Any]:
    """Time a built engine with trtexec.

    Returns:
        trtexec_ms: median GPU time of a run; trtexec_runs; trtexec_version; cuda_graph.

    Raises:
        TrtexecFailed: it is absent, of another release, ends with an error, or takes too long.
    """
    program = program or find()
    with tempfile.TemporaryDirectory(prefix="hwloop-trtexec-") as name:
        folder = Path(name)
        engine, times = folder / "engine.plan", folder / "times.json"
        engine.write_bytes(plan)
        arguments = command(
            version, str(engine), times=str(times), cuda_graph=cuda_graph, program=program
        )
        status, output = _run(arguments, deadline_s)
        found = banner_version(output)
        if found is not None and found.split(".")[:2] != version.split(".")[:2]:
            raise TrtexecFailed(
                f"{program} is TensorRT {found}, the engine is of {version}; "
                "put the right one on the PATH"
            )
        if status != 0 or not times.exists():
            raise TrtexecFailed(f"trtexec ended with {status}: {output[-LOG_CHARACTERS:]}")
        values = compute_ms(times.read_text())
    return {
        "trtexec_ms": median(values),
        "trtexec_runs": len(values),
        "trtexec_version": found or "unknown",
        "cuda_graph": cuda_graph,
    }


def _run(arguments: list[str], deadline_s: float) -> tuple[int, str]:
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TrtexecFailed(f"trtexec took longer than {deadline_s:.0f} s") from error
    except OSError as error:
        raise TrtexecFailed(f"trtexec does not start: {error}") from error
    return done.returncode, done.stdout.decode(errors="replace").strip()
