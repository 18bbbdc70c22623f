"""``hwloop bench``: models and runs side by side, each interleaved with the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from hwloop import measure
from hwloop.errors import CandidateError, UsageError
from hwloop.profile import TargetProfile
from hwloop.progress import Progress
from hwloop.records import Measurement, to_json
from hwloop.targets import DeviceSession, Model


def compare(
    paths: list[Path], *, profile: TargetProfile, progress: Progress, cross_check: bool = False
) -> list[dict[str, Any]]:
    """Time every model against the first, by the profile's bench protocol.

    A run stands for its best network, and a single run is compared with its dense one. A single
    file is compared with itself, which shows what the machine's noise alone looks like.

    Returns:
        One record per model: file, latency_ms, latency_ms_ci95, latency_source, size_bytes; from
        the second on also speedup, speedup_ci95, significant, samples, stopped,
        launch_overhead_ms, unstable. The
        first has the target's fingerprint. With ``cross_check`` each has what trtexec found.

    Raises:
        UsageError: a path that is no ONNX file and no run, or one that the target cannot run.
    """
    files = [file for path in paths for file in _files(path, alone=len(paths) == 1)]
    if not files:
        raise UsageError("nothing to measure", "hwloop bench FILE.onnx ...")
    if profile.simulated:
        raise UsageError(
            f"target {profile.name!r} is simulated: it cannot time a file",
            "hwloop target list shows the real ones",
        )
    models = [_read(file) for file in files]
    if len(models) == 1:
        files, models = files * 2, models * 2
    progress.stage("bench")
    measurements = []
    checks: list[dict[str, Any]] = [{} for _ in models]
    with DeviceSession(profile) as session:
        for number, (file, model) in enumerate(zip(files[1:], models[1:], strict=True)):
            progress.advance(number, len(files) - 1, str(file))
            measurements.append(_measured(session, model, models[0], file, profile))
        if cross_check:
            checks = [_cross_check(session, model) for model in models]
        fingerprint = to_json(session.fingerprint)
    first = {
        "file": str(files[0]),
        "latency_ms": measurements[0].reference_latency_ms,
        "latency_ms_ci95": list(measurements[0].reference_ms_ci95),
        "latency_source": "device",
        "size_bytes": len(models[0].data),
        "fingerprint": fingerprint,
    }
    rest = zip(files[1:], models[1:], measurements, strict=True)
    records = [first, *(_record(file, model, found) for file, model, found in rest)]
    return [{**record, **check} for record, check in zip(records, checks, strict=True)]


def _cross_check(session: DeviceSession, model: Model) -> dict[str, Any]:
    """What NVIDIA's own tool says of the same engine, or why it says nothing."""
    try:
        return {"cross_check": session.cross_check(model)}
    except CandidateError as error:
        return {"cross_check": {"failed": str(error)}}


def _record(file: Path, model: Model, measurement: Measurement) -> dict[str, Any]:
    low, high = measurement.ratio_ci95
    return {
        "file": str(file),
        "latency_ms": measurement.latency_ms,
        "latency_ms_ci95": list(measurement.latency_ms_ci95),
        "latency_source": "device",
        "size_bytes": len(model.data),
        "speedup": 1 / measurement.ratio,
        "speedup_ci95": [1 / high, 1 / low],
        "significant": measurement.significant,
        "samples": len(measurement.samples_ms),
        "stopped": measurement.stopped,
        "launch_overhead_ms": measurement.launch_overhead_ms,
        "unstable": list(measurement.unstable),
    }


def _measured(
    session: DeviceSession, model: Model, first: Model, file: Path, profile: TargetProfile
) -> Measurement:
    try:
        return measure.against(
            session,
            model,
            first,
            protocol=profile.protocols.bench,
            reference_latency_ms=0.0,
        )
    except CandidateError as error:
        raise UsageError(f"{file} does not run on {profile.name}: {error}") from error


def _files(path: Path, *, alone: bool) -> list[Path]:
    if not path.is_dir():
        return [path]
    best = path / "best" / "model.onnx"
    return [path / "dense.onnx", best] if alone else [best]


def _read(file: Path) -> Model:
    try:
        data = file.read_bytes()
        onnx.checker.check_model(onnx.load_from_string(data))
    except OSError as error:
        raise UsageError(
            f"cannot read {file}: {error.strerror}", "name ONNX files, or folders of runs"
        ) from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it cannot be parsed"
        raise UsageError(f"{file} is no valid ONNX file: {reason}", "export it again") from error
    return Model(data)
