"""The second opinion: flags per version, exported times and profiles, programs that misbehave."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hwloop.device import trtexec
from hwloop.device.trtexec import (
    TrtexecFailed,
    banner_version,
    command,
    compute_ms,
    cross_check,
    layer_times,
    profile,
    profile_command,
)

# One run as --exportTimes writes it, in all releases from 8.6 on.
RUN = {
    "startEnqMs": 0.01, "endEnqMs": 0.02, "startH2dMs": 0.0, "endH2dMs": 0.0,
    "startComputeMs": 0.03, "endComputeMs": 1.28, "startD2hMs": 0.0, "endD2hMs": 0.0,
    "h2dMs": 0.0, "computeMs": 1.25, "d2hMs": 0.0, "latencyMs": 1.25,
}  # fmt: skip


def flags(version: str, *, cuda_graph: bool) -> set[str]:
    found = command(version, "e.plan", times="t.json", cuda_graph=cuda_graph)
    assert found[0] == "trtexec"
    assert {"--loadEngine=e.plan", "--exportTimes=t.json", "--infStreams=1"} <= set(found)
    return {flag for flag in found if "=" not in flag and flag.startswith("--")}


@pytest.mark.parametrize(
    ("version", "cuda_graph", "expected"),
    [
        ("10.3.0", True, {"--useSpinWait", "--noDataTransfers", "--useCudaGraph"}),
        ("10.16.1", False, {"--useSpinWait", "--noDataTransfers"}),
        ("11.0.0", True, set()),
        ("11.4.1", False, {"--noCudaGraph"}),
    ],
)
def test_the_same_thing_is_timed_in_every_release(
    version: str, cuda_graph: bool, expected: set[str]
) -> None:
    assert flags(version, cuda_graph=cuda_graph) == expected


def test_the_gpus_time_is_read_from_the_exported_times() -> None:
    assert compute_ms(json.dumps([RUN, {**RUN, "computeMs": 2.0}])) == [1.25, 2.0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '[{"latencyMs": 1}]', "[1]"])
def test_times_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(TrtexecFailed, match="times"):
        compute_ms(text)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec", "10.3.0"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101601] [b11]", "10.16.1"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v110400]", "11.4.0"),
        ("nothing", None),
    ],
)
def test_the_release_is_read_from_the_banner(text: str, version: str | None) -> None:
    assert banner_version(text) == version


def program(folder: Path, *lines: str) -> str:
    """A program in the place of trtexec, which writes times and says the lines of Python."""
    path = folder / "trtexec"
    body = [f"#!{sys.executable}", "import json, sys, time", "arguments = sys.argv[1:]"]
    body += [
        "path = lambda flag: [a.split('=')[1] for a in arguments if a.startswith(flag + '=')][0]",
        "export = lambda flag, value: json.dump(value, open(path(flag), 'w'))",
        "engine = next(a for a in arguments if a.startswith('--loadEngine=')).split('=')[1]",
        "assert open(engine, 'rb').read() == b'the plan'",
        *lines,
    ]
    path.write_text("\n".join(body) + "\n")
    path.chmod(0o755)
    return str(path)


def write_times(*milliseconds: float) -> str:
    return f"export('--exportTimes', {[{**RUN, 'computeMs': ms} for ms in milliseconds]})"


BANNER = "print('&&&& RUNNING TensorRT.trtexec [TensorRT v100300]')"


def checked(path: str, **changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"version": "10.3.0", "cuda_graph": True, "program": path, **changes}
    return cross_check(b"the plan", **asked)


def test_a_cross_check_gives_the_median(tmp_path: Path) -> None:
    path = program(tmp_path, BANNER, write_times(1.0, 5.0, 2.0))
    assert checked(path) == {
        "trtexec_ms": 2.0,
        "trtexec_runs": 3,
        "trtexec_version": "10.3.0",
        "cuda_graph": True,
    }


def test_another_release_is_refused(tmp_path: Path) -> None:
    path = program(tmp_path, BANNER, "sys.exit(1)")
    with pytest.raises(TrtexecFailed, match=r"is TensorRT 10\.3\.0, the engine is of 11\.4\.1"):
        checked(path, version="11.4.1")


def test_a_failure_tells_what_was_said(tmp_path: Path) -> None:
    path = program(tmp_path, BANNER, "print('Engine deserialization failed'); sys.exit(1)")
    with pytest.raises(TrtexecFailed, match=r"ended with 1: .*\n?.*deserialization failed"):
        checked(path)


def test_times_of_a_run_that_failed_do_not_count(tmp_path: Path) -> None:
    with pytest.raises(TrtexecFailed, match="ended with 1"):
        checked(program(tmp_path, BANNER, write_times(1.0), "sys.exit(1)"))


def test_it_has_a_deadline(tmp_path: Path) -> None:
    path = program(tmp_path, "time.sleep(60)")
    with pytest.raises(TrtexecFailed, match="longer than 1 s"):
        checked(path, deadline_s=1.0)


def test_its_absence_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trtexec, "JETSON_PATH", str(tmp_path / "trtexec"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(TrtexecFailed, match="libnvinfer-bin"):
        cross_check(b"", version="10.3.0", cuda_graph=True)
    program(tmp_path)
    assert trtexec.find() == str(tmp_path / "trtexec")


# ------------------------------------------------------------------------------- by layer

# The inspector's JSON as 10.x and 11.x write it, shortened to what differs.
LAYERS_10 = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to /conv/Conv",
            "LayerType": "Reformat",
            "Outputs": [{"Name": "r", "Format/Datatype": "Channel major FP16 format"}],
        },
        {"Name": "/conv/Conv + /relu/Relu", "LayerType": "CaskConvolution", "Outputs": []},
        {"Name": "/flatten/Flatten", "LayerType": "NoOp", "Outputs": []},
    ],
    "Bindings": ["input", "output"],
}
LAYERS_11 = {
    "Layers": [
        {
            "Name": "__mye_copy",
            "LayerType": "Reformat",
            "Outputs": [{"Name": "r", "Format": "Row major", "DataType": "Half"}],
        },
        {"Name": "/conv/Conv + /relu/Relu", "LayerType": "kgen", "Outputs": []},
        {"Name": "/flatten/Flatten", "LayerType": "NoOp", "Outputs": []},
    ],
    "I/O Tensors": [{"Name": "input", "IOMode": "Input", "DataType": "Half"}],
}
ONLY_NAMES = {"Layers": [layer["Name"] for layer in LAYERS_10["Layers"]], "Bindings": []}


def timed(name: str, ms: float) -> dict[str, Any]:
    """A layer as --exportProfile writes it."""
    return {"name": name, "timeMs": ms, "averageMs": ms / 10, "medianMs": ms / 10, "percentage": 1}


def profiled(copy: str) -> list[dict[str, Any]]:
    layers = [timed(copy, 2.0), timed("/conv/Conv + /relu/Relu", 6.0)]
    return [{"count": 10}, *layers, timed("/flatten/Flatten", 0.0)]


COPY_10, COPY_11 = "Reformatting CopyNode for Input Tensor 0 to /conv/Conv", "__mye_copy"


@pytest.mark.parametrize(
    ("layers", "copy"),
    [(LAYERS_10, COPY_10), (LAYERS_11, COPY_11), (ONLY_NAMES, COPY_10)],
    ids=["10.x", "11.x", "without details"],
)
def test_reformats_and_their_share_are_found_in_every_releases_json(
    layers: dict[str, Any], copy: str
) -> None:
    found = layer_times(json.dumps(layers), json.dumps(profiled(copy)))
    assert found["reformats"] == 1
    assert found["reformat_share"] == pytest.approx(0.25)
    # Without details nobody says which layers do nothing.
    assert found["layers"] == (3 if layers is ONLY_NAMES else 2)


def test_names_with_control_characters_are_read() -> None:
    times = json.dumps(profiled("copy")).replace('"copy"', '"copy\x1e[ONNX Layer: /conv/Conv]"')
    assert "\x1e" in times
    assert layer_times(json.dumps(LAYERS_10), times)["layers"] == 2


@pytest.mark.parametrize(
    ("layers", "times"),
    [
        ("", json.dumps(profiled(COPY_10))),
        ("{}", json.dumps(profiled(COPY_10))),
        (json.dumps(LAYERS_10), ""),
        (json.dumps(LAYERS_10), "[]"),
        (json.dumps(LAYERS_10), '[{"count": 10}]'),
        (json.dumps(LAYERS_10), '[{"name": "a"}]'),
        (json.dumps(LAYERS_10), '[{"name": "a", "timeMs": NaN}]'),
        (json.dumps(LAYERS_10), "[1]"),
    ],
)
def test_profiles_that_are_none_are_refused(layers: str, times: str) -> None:
    with pytest.raises(TrtexecFailed, match="profile"):
        layer_times(layers, times)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("10.3.0", {"--useSpinWait", "--noDataTransfers"}),
        ("10.16.2", {"--useSpinWait", "--noDataTransfers"}),
        ("11.4.1", {"--noCudaGraph"}),
    ],
)
def test_layers_are_timed_without_a_graph_in_every_release(
    version: str, expected: set[str]
) -> None:
    found = profile_command(version, "e.plan", layers="l.json", profile="p.json")
    assert {flag for flag in found if "=" not in flag and flag.startswith("--")} == expected
    assert {"--exportLayerInfo=l.json", "--exportProfile=p.json"} <= set(found)
    assert not [flag for flag in found if flag.startswith("--exportTimes")]


def test_a_profile_says_what_made_it(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        BANNER,
        f"export('--exportLayerInfo', {LAYERS_10})",
        f"export('--exportProfile', {profiled(COPY_10)})",
    )
    assert profile(b"the plan", version="10.3.0", program=path) == {
        "layers": 2,
        "reformats": 1,
        "reformat_share": 0.25,
        "source": "trtexec 10.3.0",
    }


def test_half_a_profile_is_none(tmp_path: Path) -> None:
    path = program(tmp_path, BANNER, f"export('--exportLayerInfo', {LAYERS_10})")
    with pytest.raises(TrtexecFailed, match="ended with 0"):
        profile(b"the plan", version="10.3.0", program=path)


def test_a_profile_has_a_deadline_and_a_release(tmp_path: Path) -> None:
    path = program(tmp_path, "time.sleep(60)")
    with pytest.raises(TrtexecFailed, match="longer than 1 s"):
        profile(b"the plan", version="10.3.0", program=path, deadline_s=1.0)
    path = program(tmp_path, BANNER)
    with pytest.raises(TrtexecFailed, match=r"is TensorRT 10\.3\.0"):
        profile(b"the plan", version="10.16.0", program=path)
