"""``hwloop bench``: models and runs side by side, each interleaved with the first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hwloop.errors import CandidateError, UsageError
from hwloop.files import within
from hwloop.findings import Measurement
from hwloop.measure import paired as measure
from hwloop.measure.profile import TargetProfile
from hwloop.measure.progress import Progress
from hwloop.measure.session import DeviceSession
from hwloop.parsing import to_json
from hwloop.runtimes.graph import OnnxModel

if TYPE_CHECKING:
    from hwloop.measure.modelfile import ModelFile

PATHS = "name ONNX files, or folders of runs"
TRTEXEC_FROM_MS = 0.1
TRTEXEC_NOTE = "trtexec times one launch per pair of events: below 0.1 ms that is in its figure"
Shapes: TypeAlias = Mapping[str, Sequence[int]] | Iterable[str] | None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One file that is measured, and what is sent of it."""

    file: ModelFile
    model: OnnxModel


def compare(
    paths: list[Path],
    *,
    profile: TargetProfile,
    progress: Progress,
    cross_check: bool = False,
    shapes: Shapes = None,
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
        unstable. The first has the target's fingerprint. On TensorRT each has without_copies, and
        with ``cross_check`` what trtexec found, with a note where the engine is too quick for its
        way of timing.

    Raises:
        UsageError: a path that is no ONNX file and no run, or one that the target cannot run.
    """
    check_asked(paths, [profile], cross_check=cross_check)
    subjects = read(paths, shapes, progress=progress)
    if len(subjects) == 1:
        subjects = subjects * 2
    first, *others = subjects
    progress.stage("bench")
    checks: list[dict[str, Any]] = [{} for _ in subjects]
    with DeviceSession(profile) as session:
        found = []
        for done, other in enumerate(others):
            progress.advance(done, len(others), str(other.file.path))
            found.append(_measured(session, other, first))
        if cross_check:
            checks = [cross_checked(session, subject.model) for subject in subjects]
        fingerprint = to_json(session.fingerprint)
    rest = zip(others, found, strict=True)
    records = [
        {**baseline(first.file, found[0]), "fingerprint": fingerprint},
        *(record(other.file, measured) for other, measured in rest),
    ]
    return [finished(record, profile, check) for record, check in zip(records, checks, strict=True)]


def check_asked(
    paths: Sequence[Path], profiles: Sequence[TargetProfile], *, cross_check: bool
) -> None:
    """Raises UsageError for what cannot be timed, before a file is read or a target touched."""
    if not paths:
        raise UsageError("nothing to measure", "hwloop bench FILE.onnx ...")
    for profile in profiles:
        if profile.simulated:
            raise UsageError(
                f"target {profile.name!r} is simulated: it cannot time a file",
                "hwloop target list shows the real ones",
            )
    if cross_check and not any(profile.kind.ships_engine for profile in profiles):
        raise UsageError(
            f"target {profiles[0].name!r} runs {profiles[0].runtime}: trtexec times engines of "
            "TensorRT",
            "leave --cross-check out, or name a target with TensorRT",
        )


def read(paths: Sequence[Path], shapes: Shapes, *, progress: Progress) -> list[Subject]:
    """Every file that the paths stand for, checked; what is assumed of them is told.

    Raises:
        UsageError: a path that is no ONNX file and no run, or an input of unknown shape.
    """
    from hwloop.measure import modelfile

    wanted = modelfile.parse_shapes(shapes)
    files = [file for path in paths for file in _files(path, alone=len(paths) == 1)]
    found = modelfile.read_models(files, wanted)
    for text in dict.fromkeys(filter(None, map(modelfile.note, found))):
        progress.say(text)
    return [Subject(file=file, model=OnnxModel(file.data)) for file in found]


def _measured(session: DeviceSession, subject: Subject, first: Subject) -> Measurement:
    protocol = session.profile.protocols.bench
    return timed(
        session,
        subject,
        first,
        lambda: measure.against(
            session, subject.model, first.model, protocol=protocol, reference_latency_ms=0.0
        ),
    )


def timed(
    session: DeviceSession, subject: Subject, first: Subject, take: Callable[[], Measurement]
) -> Measurement:
    """A measurement of two files. Raises UsageError, naming the one that does not run."""
    try:
        return take()
    except CandidateError as error:
        file, reason = subject.file.path, error
    protocol = session.profile.protocols.bench
    try:  # both ran: the one that fails by itself is to blame
        session.measure(first.model, first.model, protocol=protocol, reference_latency_ms=0.0)
    except CandidateError as error:
        file, reason = first.file.path, error
    name = session.profile.name
    raise UsageError(f"{file} does not run on {name}: {reason}", "export it again") from reason


def cross_checked(session: DeviceSession, model: OnnxModel) -> dict[str, Any]:
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


def record(file: ModelFile, measurement: Measurement) -> dict[str, Any]:
    return {
        **_about(file),
        "latency_ms": measurement.latency_ms,
        "latency_ms_ci95": list(measurement.latency_ms_ci95),
        "speedup": measurement.speedup,
        "speedup_ci95": list(measurement.speedup_ci95),
        "significant": measurement.significant,
        "samples": len(measurement.samples_ms),
        "stopped": measurement.stopped,
        "clock": measurement.clock,
        "disturbance": measurement.disturbance,
        "launch_overhead_ms": measurement.launch_overhead_ms,
        "unstable": list(measurement.unstable),
    }


def baseline(file: ModelFile, measurement: Measurement) -> dict[str, Any]:
    """The record of what all others are compared with: the reference of a measurement."""
    return {
        **_about(file),
        "latency_ms": measurement.reference_latency_ms,
        "latency_ms_ci95": list(measurement.reference_ms_ci95),
    }


def finished(
    record: dict[str, Any], profile: TargetProfile, check: dict[str, Any]
) -> dict[str, Any]:
    """A record with what its figure leaves out, and the second opinion."""
    copies = {"without_copies": True} if profile.kind.on_gpu else {}
    return {**record, **copies, **_beside(check, record["latency_ms"])}


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
