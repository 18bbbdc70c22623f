"""NVIDIA's own tool as a second opinion: the same engine under ``trtexec``, timed or profiled.

Its defaults changed in 11.0 (CUDA graph, spin wait and no transfers became the default), so every
flag is given for the version at hand, and the same thing is timed by both.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from hwloop.device import cache

JETSON_PATH = "/usr/src/tensorrt/bin/trtexec"
INSTALL = "on a Jetson: sudo apt-get install libnvinfer-bin; elsewhere it is in TensorRT's archive"
WARM_UP_MS = 500
DURATION_S = 3
DEADLINE_S = 120.0
LOG_CHARACTERS = 600
FLIPPED_IN = 11
COPY_NODE = "Reformatting CopyNode"
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
    return [
        *_common(program, engine),
        f"--exportTimes={times}",
        *_like_11(version, cuda_graph=cuda_graph),
    ]


def profile_command(
    version: str, engine: str, *, layers: str, profile: str, program: str = "trtexec"
) -> list[str]:
    """The argument list that times every layer by itself.

    Without a CUDA graph: the profiler has no events inside of one. Up to 10.x the profiled run is
    the only one (``--separateProfileRun`` would add one); from 11.0 on it is one more by itself.

    Args:
        layers, profile: paths of the two JSON files that are written.
    """
    return [
        *_common(program, engine),
        f"--exportLayerInfo={layers}",
        f"--exportProfile={profile}",
        *_like_11(version, cuda_graph=False),
    ]


def _common(program: str, engine: str) -> list[str]:
    return [
        program,
        f"--loadEngine={engine}",
        f"--warmUp={WARM_UP_MS}",
        f"--duration={DURATION_S}",
        "--device=0",
        "--infStreams=1",
    ]


def _like_11(version: str, *, cuda_graph: bool) -> list[str]:
    """The flags that make every release spin and copy nothing, with or without a graph."""
    if int(version.split(".")[0]) >= FLIPPED_IN:
        return [] if cuda_graph else ["--noCudaGraph"]
    return ["--useSpinWait", "--noDataTransfers", *(["--useCudaGraph"] if cuda_graph else [])]


def compute_ms(text: str) -> list[float]:
    """GPU milliseconds of each run in the JSON of ``--exportTimes``. Raises TrtexecFailed."""
    try:
        times = [float(run["computeMs"]) for run in json.loads(text)]
    except (ValueError, KeyError, TypeError) as error:
        raise TrtexecFailed(f"trtexec wrote times that are none: {error!r}") from error
    if not times:
        raise TrtexecFailed("trtexec wrote no times")
    return times


def layer_times(layers: str, profile: str) -> dict[str, Any]:
    """How many layers an engine runs, and the share of those that only change a layout or a type.

    Args:
        layers: the JSON of ``--exportLayerInfo``: the inspector's, of 10.x or 11.x.
        profile: the JSON of ``--exportProfile``: a count, then name and times of each layer.

    Returns:
        layers: that were timed; reformats: of them; reformat_share: of their time, 0 to 1. Times
        of single layers do not add up to an inference: the profiler waits after each.

    Raises:
        TrtexecFailed: one of the two is none.
    """
    try:
        # Names are written as they are: some releases put control characters into them.
        entries = json.loads(layers, strict=False)
        listed = entries if isinstance(entries, list) else entries["Layers"]
        details = [entry for entry in listed if isinstance(entry, dict)]
        copies = {str(e["Name"]) for e in details if e.get("LayerType") == "Reformat"}
        nothing = {str(e["Name"]) for e in details if e.get("LayerType") == "NoOp"}
        timed = [
            (str(entry["name"]), float(entry["timeMs"]))
            for entry in json.loads(profile, strict=False)
            if "name" in entry
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise TrtexecFailed(f"trtexec wrote a profile that is none: {error!r}") from error
    executed = [(name, ms) for name, ms in timed if name not in nothing]
    total_ms = sum(ms for _, ms in executed)
    if not 0 < total_ms < float("inf"):
        raise TrtexecFailed("trtexec profiled no layer")
    reformats = [ms for name, ms in executed if name in copies or name.startswith(COPY_NODE)]
    return {
        "layers": len(executed),
        "reformats": len(reformats),
        "reformat_share": sum(reformats) / total_ms,
    }


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

    def arguments(engine: str, times: str) -> list[str]:
        return command(version, engine, times=times, cuda_graph=cuda_graph, program=program)

    found, (text,) = _exported(plan, arguments, 1, version=version, deadline_s=deadline_s)
    values = compute_ms(text)
    return {
        "trtexec_ms": median(values),
        "trtexec_runs": len(values),
        "trtexec_version": found or "unknown",
        "cuda_graph": cuda_graph,
    }


def profile(
    plan: bytes, *, version: str, program: str | None = None, deadline_s: float = DEADLINE_S
) -> dict[str, Any]:
    """Profile a built engine layer by layer with trtexec; it must have been built with details.

    Returns:
        What :func:`layer_times` returns; source: ``trtexec`` and its release.

    Raises:
        TrtexecFailed: it is absent, of another release, ends with an error, or takes too long.
    """
    program = program or find()

    def arguments(engine: str, layers: str, times: str) -> list[str]:
        return profile_command(version, engine, layers=layers, profile=times, program=program)

    found, (layers, times) = _exported(plan, arguments, 2, version=version, deadline_s=deadline_s)
    return {**layer_times(layers, times), "source": f"trtexec {found or version}"}


def _exported(
    plan: bytes,
    arguments: Callable[..., list[str]],
    count: int,
    *,
    version: str,
    deadline_s: float,
) -> tuple[str | None, list[str]]:
    """Run the program on an engine: its release by its banner, and the files that it wrote.

    Args:
        arguments: makes the argument list of the engine's path and ``count`` paths to write to.
    """
    with cache.scratch() as folder:
        engine, written = folder / "engine.plan", [folder / f"{i}.json" for i in range(count)]
        engine.write_bytes(plan)
        line = arguments(str(engine), *map(str, written))
        status, output = _run(line, deadline_s)
        found = banner_version(output)
        if found is not None and found.split(".")[:2] != version.split(".")[:2]:
            raise TrtexecFailed(
                f"{line[0]} is TensorRT {found}, the engine is of {version}; "
                "put the right one on the PATH"
            )
        if status != 0 or not all(path.exists() for path in written):
            raise TrtexecFailed(f"trtexec ended with {status}: {output[-LOG_CHARACTERS:]}")
        return found, [path.read_text(encoding="utf-8", errors="replace") for path in written]


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
