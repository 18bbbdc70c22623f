"""``hwloop bench``: models and runs side by side, each interleaved with the first."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hwloop.errors import CandidateError, UsageError
from hwloop.files import within
from hwloop.findings import Measurement
from hwloop.measure import modelfile
from hwloop.measure import paired as measure
from hwloop.measure.modelfile import ModelFile
from hwloop.measure.profile import TargetProfile
from hwloop.measure.progress import Progress
from hwloop.measure.session import DeviceSession
from hwloop.parsing import to_json
from hwloop.runtimes.graph import OnnxModel

PATHS = "name ONNX files, or folders of runs"
TRTEXEC_FROM_MS = 0.1
TRTEXEC_NOTE = "trtexec times one launch per pair of events: below 0.1 ms that is in its figure"


def compare(
    paths: list[Path],
    *,
    profile: TargetProfile,
    progress: Progress,
    cross_check: bool = False,
    shapes: Mapping[str, Sequence[int]] | Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Time every model against the first, by the profile's bench protocol.

    A run stands for its best network, and a single run is compared with its dense one. A single
    file is compared with itself, which shows what the machine's noise alone looks like.

    Args:
        shapes: of inputs with dynamic dimensions, see
            :func:`hwloop.measure.modelfile.parse_shapes`; a dynamic batch alone is taken as 1.

    Returns:
        One record per model: file, latency_ms, latency_ms_ci95, latency_source, size_bytes,
        fixed_shapes (of inputs that are dynamic in the file); from the second on also speedup,
        speedup_ci95, significant, samples, stopped, clock, disturbance, launch_overhead_ms,
        unstable. The first has
        the target's fingerprint. On TensorRT each has without_copies, and with ``cross_check``
        what trtexec found, with a note where the engine is too quick for its way of timing.

    Raises:
        UsageError: a path that is no ONNX file and no run, or one that the target cannot run.
    """
    if not paths:
        raise UsageError("nothing to measure", "hwloop bench FILE.onnx ...")
    if profile.simulated:
        raise UsageError(
            f"target {profile.name!r} is simulated: it cannot time a file",
            "hwloop target list shows the real ones",
        )
    if cross_check and not profile.kind.ships_engine:
        raise UsageError(
            f"target {profile.name!r} runs {profile.runtime}: trtexec times engines of TensorRT",
            "leave --cross-check out, or name a target with TensorRT",
        )
    wanted = modelfile.parse_shapes(shapes)
    files = [file for path in paths for file in _files(path, alone=len(paths) == 1)]
    found = modelfile.read_models(files, wanted)
    for text in dict.fromkeys(filter(None, map(modelfile.note, found))):
        progress.say(text)
    if len(found) == 1:
        found = found * 2
    models = [OnnxModel(file.data) for file in found]
    progress.stage("bench")
    measurements = []
    checks: list[dict[str, Any]] = [{} for _ in models]
    with DeviceSession(profile) as session:
        for number in range(1, len(found)):
            progress.advance(number - 1, len(found) - 1, str(found[number].path))
            measurements.append(_measured(session, models, found, number))
        if cross_check:
            checks = [_cross_check(session, model) for model in models]
        fingerprint = to_json(session.fingerprint)
    first = {
        **_about(found[0]),
        "latency_ms": measurements[0].reference_latency_ms,
        "latency_ms_ci95": list(measurements[0].reference_ms_ci95),
        "fingerprint": fingerprint,
    }
    rest = zip(found[1:], measurements, strict=True)
    records = [first, *(_record(file, measured) for file, measured in rest)]
    if profile.kind.on_gpu:
        records = [{**record, "without_copies": True} for record in records]
    return [
        {**record, **_beside(check, record["latency_ms"])}
        for record, check in zip(records, checks, strict=True)
    ]


def _cross_check(session: DeviceSession, model: OnnxModel) -> dict[str, Any]:
    """What NVIDIA's own tool says of the same engine, or why it says nothing."""
    try:
        return {"cross_check": session.cross_check(model)}
    except CandidateError as error:
        return {"cross_check": {"failed": str(error)}}


def _beside(check: dict[str, Any], latency_ms: float) -> dict[str, Any]:
    """The second opinion, with what it is worth for an engine that takes this long."""
    found = check.get("cross_check")
    if found is None or "failed" in found:
        return check
    if min(latency_ms, found["trtexec_ms"]) >= TRTEXEC_FROM_MS:
        return check
    return {"cross_check": {**found, "note": TRTEXEC_NOTE}}


def _about(file: ModelFile) -> dict[str, Any]:
    return {
        "file": str(file.path),
        "latency_source": "device",
        "size_bytes": file.size_bytes,
        "fixed_shapes": to_json(file.fixed),
    }


def _record(file: ModelFile, measurement: Measurement) -> dict[str, Any]:
    low, high = measurement.ratio_ci95
    return {
        **_about(file),
        "latency_ms": measurement.latency_ms,
        "latency_ms_ci95": list(measurement.latency_ms_ci95),
        "speedup": 1 / measurement.ratio,
        "speedup_ci95": [1 / high, 1 / low],
        "significant": measurement.significant,
        "samples": len(measurement.samples_ms),
        "stopped": measurement.stopped,
        "clock": measurement.clock,
        "disturbance": measurement.disturbance,
        "launch_overhead_ms": measurement.launch_overhead_ms,
        "unstable": list(measurement.unstable),
    }


def _measured(
    session: DeviceSession, models: list[OnnxModel], files: list[ModelFile], number: int
) -> Measurement:
    protocol = session.profile.protocols.bench
    try:
        return measure.against(
            session, models[number], models[0], protocol=protocol, reference_latency_ms=0.0
        )
    except CandidateError as error:
        file, reason = files[number].path, error
    try:  # both ran: the one that fails by itself is to blame
        session.measure(models[0], models[0], protocol=protocol, reference_latency_ms=0.0)
    except CandidateError as error:
        file, reason = files[0].path, error
    name = session.profile.name
    raise UsageError(f"{file} does not run on {name}: {reason}", "export it again") from reason


def _files(path: Path, *, alone: bool) -> list[Path]:
    """The file itself, or those of a run: which may not lead out of its folder."""
    if not os.path.isdir(path):  # unlike Path's, it takes any path
        return [path]
    if not os.path.exists(path / "best"):
        raise UsageError(f"{path} is a folder without a best network", PATHS)
    names = ["dense.onnx", "best/model.onnx"] if alone else ["best/model.onnx"]
    for name in names:
        within(path / name, path, hint=PATHS)
    return [path / name for name in names]
