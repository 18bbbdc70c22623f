"""Building: in NVIDIA's own builder where its wheels are, in a process of its own, and played."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_trt
import numpy as np
import onnx
import pytest
from graphs import row_onnx
from onnx import TensorProto, helper, numpy_helper

from hwloop.device import cache, trt_build, trt_cache, trt_child
from hwloop.device.trt_build import BuildFailed, BuildRequest, build, prove
from hwloop.device.trt_child import build_in_child
from hwloop.measure.table import EMPTY, REFERENCE
from hwloop.records import LayerConfig

TESTS = Path(__file__).parent
RTX = "tensorrt_rtx_bindings"


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip(
        RTX, reason='NVIDIA\'s builder is not installed: pip install "hwloop[rtx]"'
    )


@pytest.fixture(autouse=True)
def children_find_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def graph(nodes: list[Any], weights: dict[str, np.ndarray], kind: int = TensorProto.FLOAT) -> bytes:
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "net",
        [value("input", kind, [1, 8, 8, 8])],
        [value("output", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])
    data: bytes = model.SerializeToString()
    return data


def conv_net(dtype: Any = np.float32) -> bytes:
    rng = np.random.default_rng(0)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {f"w{i}": rng.standard_normal((8, 8, 3, 3)).astype(dtype) for i in range(2)}
    nodes = [
        helper.make_node("Conv", ["input", "w0"], ["a"], name="/conv1/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], name="/relu/Relu"),
        helper.make_node("Conv", ["b", "w1"], ["output"], name="/conv2/Conv", pads=[1] * 4),
    ]
    return graph(nodes, weights, kind)


# ---------------------------------------------------------------- NVIDIA's builder, without a GPU


def test_a_plain_network_is_proved(rtx: Any) -> None:
    found = prove(conv_net(), trt=rtx)
    assert found["dtypes"] == {"FLOAT": found["layers"]}
    assert 0 < found["build_s"] < 60
    assert found["engine_bytes"] > 1000
    assert found["version"] == rtx.__version__


def test_an_fp16_graph_is_found_to_be_fp16(rtx: Any) -> None:
    assert prove(conv_net(np.float16), trt=rtx, precision="fp16")["dtypes"]["HALF"] >= 3


def test_fp16_that_was_asked_for_and_is_not_there_is_a_failure(rtx: Any) -> None:
    with pytest.raises(BuildFailed, match=r"fp16 was asked for and no layer has it.*FLOAT"):
        prove(conv_net(), trt=rtx, precision="fp16")


def test_a_parser_error_names_node_and_operator(rtx: Any) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"], name="/q/Quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["output"], name="/dq/Dequantize"),
    ]
    weights = {"s": np.float32(0.1).reshape(()), "z": np.int8(3).reshape(())}
    with pytest.raises(BuildFailed, match=r"QuantizeLinear '/q/Quantize': .+"):
        prove(graph(nodes, weights), trt=rtx)


def test_an_unsupported_operator_is_named(rtx: Any) -> None:
    nodes = [helper.make_node("Secret", ["input"], ["output"], name="/head/Secret", domain="")]
    with pytest.raises(BuildFailed, match=r"Secret '/head/Secret'"):
        prove(graph(nodes, {}), trt=rtx)


def test_bytes_that_are_no_graph_are_refused(rtx: Any) -> None:
    with pytest.raises(BuildFailed, match="parser refuses the graph"):
        prove(b"no graph", trt=rtx)


def test_a_build_stops_at_its_deadline(rtx: Any) -> None:
    with pytest.raises(BuildFailed, match="cancelled after 0 s"):
        prove(conv_net(), trt=rtx, deadline_s=0.0)


def test_a_failed_build_leaves_the_builder_usable(rtx: Any) -> None:
    for _ in range(2):
        with pytest.raises(BuildFailed):
            prove(b"no graph", trt=rtx)
        assert prove(conv_net(), trt=rtx)["warnings"] == []


def test_a_child_builds_with_nvidias_builder(rtx: Any) -> None:
    request = BuildRequest(compute_capability="SM86", precision="fp16", workspace_bytes=64 << 20)
    plan, record = build_in_child(conv_net(np.float16), request, module=RTX)
    assert len(plan) == record["engine_bytes"] > 1000
    with pytest.raises(BuildFailed, match=r"^TensorRT's parser refuses"):
        build_in_child(b"no graph", request, module=RTX)


# ------------------------------------------------- rows, in the layouts that their kernels like


def rows() -> Iterator[LayerConfig]:
    """One of every operator and precision, with channels that no layout groups evenly."""
    window = {"kernel": (3, 3), "padding": (1, 1)}
    halved = {"kernel": (2, 2), "stride": (2, 2)}
    operators: list[tuple[str, dict[str, Any]]] = [
        ("conv", {**window, "tail": ("bias", "add", "relu")}),
        ("conv", {**window, "groups": 20, "tail": ("bias", "clip:0.0:6.0")}),
        ("maxpool", halved),
        ("avgpool", halved),
        ("globalavgpool", {}),
        ("elementwise", {"tail": ("add", "relu")}),
    ]
    for precision in ("fp32", "fp16", "int8"):
        ends = {"precision_in": precision, "precision": precision, "precision_out": precision}
        for op, changes in operators:
            yield LayerConfig(op=op, in_shape=(1, 20, 8, 8), out_channels=20, **ends, **changes)
        tail = ("bias", "relu")
        yield LayerConfig(op="linear", in_shape=(1, 32), out_channels=32, **ends, tail=tail)
    shape: dict[str, Any] = {"in_shape": (1, 20, 8, 8), "out_channels": 20}
    yield LayerConfig(op="quantize", precision_in="fp16", precision="int8", **shape)
    yield LayerConfig(op="dequantize", precision_in="int8", precision="fp16", **shape)
    yield REFERENCE
    yield EMPTY


def test_every_kind_of_row_builds_in_layouts_of_the_builders_choice(rtx: Any) -> None:
    for config in rows():
        assert prove(row_onnx(config, "tensorrt"), trt=rtx, row=True)["engine_bytes"] > 1000


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_layout_that_is_offered_is_one_of_its_type(
    rtx: Any, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    convolution = next(config for config in rows() if config.precision == precision)
    kind = getattr(rtx.DataType, trt_build.LAYER_TYPES[precision])
    offered = trt_build.image_layouts(rtx)[kind]
    assert len(offered) >= 3
    for layout in offered:
        monkeypatch.setattr(trt_build, "image_layouts", lambda trt, only=layout: {kind: (only,)})
        assert prove(row_onnx(convolution, "tensorrt"), trt=rtx, row=True)["engine_bytes"] > 1000


def test_a_layout_of_another_type_would_be_refused(
    rtx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {rtx.DataType.FLOAT: (rtx.TensorFormat.CHW2,)}
    monkeypatch.setattr(trt_build, "image_layouts", lambda trt: wrong)
    with pytest.raises(BuildFailed, match="unsupported by tensor's allowed TensorFormats"):
        prove(row_onnx(REFERENCE, "tensorrt"), trt=rtx, row=True)
    assert prove(row_onnx(REFERENCE, "tensorrt"), trt=rtx)["engine_bytes"] > 1000


# ------------------------------------------------------------------------- a process of its own


def child(model: bytes, *, grace_s: float = 15.0, **request: Any) -> tuple[bytes, dict[str, Any]]:
    made = BuildRequest(**request)
    return build_in_child(model, made, module="fake_trt", grace_s=grace_s)


def test_a_child_hands_plan_and_record_back() -> None:
    plan, record = child(fake_trt.model(ms=3.0), optimization_level=4)
    assert json.loads(plan)["config"]["level"] == 4
    assert record["warnings"] == ["a warning of the builder"]
    assert record["sparsity"] == {"eligible": None, "picked": None}


def test_sparse_layers_are_in_the_record() -> None:
    assert child(fake_trt.model(), sparse=True)[1]["sparsity"] == {"eligible": 5, "picked": 2}


def test_a_builder_that_the_kernel_kills_ran_out_of_memory() -> None:
    with pytest.raises(BuildFailed, match=r"out of memory; add swap.*workspace_mib.*desktop"):
        child(fake_trt.model(die=int(signal.SIGKILL)))


def test_a_crash_of_the_builder_is_named_after_its_signal() -> None:
    with pytest.raises(BuildFailed, match="crashed with SIGSEGV"):
        child(fake_trt.model(die=int(signal.SIGSEGV)))


def test_a_builder_that_ignores_its_deadline_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    model = fake_trt.model(die=int(signal.SIGSTOP), pid_file=str(pid_file))
    started = time.monotonic()
    with pytest.raises(BuildFailed, match="no engine after 2 s; the builder was killed"):
        child(model, deadline_s=0.5, grace_s=1.5)
    assert time.monotonic() - started < 8
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_build_that_takes_too_long_is_cancelled_by_the_builder_itself() -> None:
    with pytest.raises(BuildFailed, match="cancelled after 0 s"):
        child(fake_trt.model(build_s=30.0), deadline_s=0.1)


def test_a_module_that_is_not_there_is_a_reason() -> None:
    with pytest.raises(BuildFailed, match="No module named 'tensorrt_nowhere'"):
        build_in_child(b"", BuildRequest(), module="tensorrt_nowhere")


def test_nothing_of_a_build_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    child(fake_trt.model())
    with pytest.raises(BuildFailed):
        child(fake_trt.model(fail="build"))
    assert list((tmp_path / "hwloop" / "scratch").iterdir()) == []


def test_without_a_home_to_write_into_a_build_lies_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with cache.scratch() as folder:
        assert folder.parent == tmp_path / "temporary"
    child(fake_trt.model())
    assert list((tmp_path / "temporary").iterdir()) == []


def test_what_another_container_builds_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process number means nothing here; its lock does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with cache.scratch() as theirs:
        elsewhere = theirs.rename(theirs.parent / "999999999-there")
        with cache.scratch() as mine:
            assert sorted(elsewhere.parent.iterdir()) == sorted([mine, elsewhere])
    with cache.scratch() as mine:
        assert list(mine.parent.iterdir()) == [mine]


SENT = """
import importlib.abc, importlib.util, json, sys
sources = json.load(sys.stdin)
class Sent(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    def find_spec(self, name, path=None, target=None):
        if name not in sources:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=self.is_package(name))
    def get_source(self, name):
        return sources[name]
    def is_package(self, name):
        return name in ("hwloop", "hwloop.device")
sys.meta_path.insert(0, Sent())
from hwloop.device.trt_build import BuildRequest
from hwloop.device.trt_child import build_in_child
plan, record = build_in_child(sys.argv[1].encode(), BuildRequest(), module="fake_trt")
print(json.dumps([json.loads(plan)["ms"], "__file__" in vars(sys.modules["hwloop.device"])]))
"""


def test_a_worker_whose_modules_were_sent_can_build(tmp_path: Path) -> None:
    folder = Path(trt_child.__file__).parent
    names = trt_child.MODULES
    sources = {f"hwloop.device.{name}": (folder / f"{name}.py").read_text() for name in names}
    sources.update({"hwloop": "", "hwloop.device": ""})
    (tmp_path / "fake_trt.py").write_text((TESTS / "fake_trt.py").read_text())
    done = subprocess.run(
        [sys.executable, "-c", SENT, fake_trt.model(ms=7.0).decode()],
        input=json.dumps(sources),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "[7.0, false]", done.stderr


def test_a_builder_dies_with_its_worker_and_the_next_build_clears_what_they_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pid_file = tmp_path / "pid"
    model = fake_trt.model(build_s=60.0, pid_file=str(pid_file)).decode()
    code = (
        "import sys; from hwloop.device.trt_build import BuildRequest; "
        "from hwloop.device.trt_child import build_in_child; "
        "build_in_child(sys.argv[1].encode(), BuildRequest(), module='fake_trt')"
    )
    paths = f"{TESTS}{os.pathsep}{TESTS.parent}"
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen([sys.executable, "-c", code, model], env=environment) as worker:
        ends = time.monotonic() + 30
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < ends:
            time.sleep(0.05)
        builder = int(pid_file.read_text())
        worker.kill()
    ends = time.monotonic() + 5
    while _alive(builder) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not _alive(builder)
    scratch = tmp_path / "hwloop" / "scratch"
    assert [left.name.partition("-")[0] for left in scratch.iterdir()] == [str(worker.pid)]
    child(fake_trt.model())
    assert list(scratch.iterdir()) == []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# --------------------------------------------------------------------------------- played errors


def test_every_complaint_of_the_parser_is_told() -> None:
    with pytest.raises(BuildFailed) as caught:
        build(fake_trt.model(fail="parse"), BuildRequest(), trt=fake_trt)
    assert "Conv '/conv1/Conv': unsupported attribute" in str(caught.value)
    assert "Secret '/head/Secret': no importer" in str(caught.value)


def test_a_build_without_an_engine_tells_what_was_logged() -> None:
    with pytest.raises(BuildFailed, match=r"built no engine .no reason.: Could not find"):
        build(fake_trt.model(fail="build"), BuildRequest(), trt=fake_trt)


def test_a_build_is_not_blamed_for_what_an_earlier_one_logged() -> None:
    with pytest.raises(BuildFailed, match="Could not find any"):
        build(fake_trt.model(fail="build"), BuildRequest(), trt=fake_trt)
    with pytest.raises(BuildFailed, match="TensorRT logged nothing"):
        build(fake_trt.model(build_s=9.0), BuildRequest(deadline_s=0.0), trt=fake_trt)


@pytest.mark.parametrize("how", ["none", "raises"])
def test_a_builder_that_is_not_made_is_a_reason(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def builder(log: Any) -> None:
        fake_trt.say(log, "ERROR", "CUDA initialization failure with error: 35")
        if how == "raises":
            raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(fake_trt, "Builder", builder)
    with pytest.raises(BuildFailed, match=r"makes no builder.*error: 35"):
        build(fake_trt.model(), BuildRequest(), trt=fake_trt)


def test_without_the_strongly_typed_flag_a_network_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Flags:
        pass

    asked: list[int] = []
    monkeypatch.setattr(fake_trt, "NetworkDefinitionCreationFlag", Flags)
    monkeypatch.setattr(
        fake_trt.Builder,
        "create_network",
        lambda self, flags: asked.append(flags) or fake_trt.Network(),
    )
    build(fake_trt.model(), BuildRequest(), trt=fake_trt)
    assert asked == [0]


def test_a_process_has_one_logger() -> None:
    assert trt_build.logger(fake_trt) is trt_build.logger(fake_trt)


# ------------------------------------------------------------------------------ the timing cache


def cached(path: Path) -> str:
    request = BuildRequest(timing_cache=str(path))
    return str(build(fake_trt.model(), request, trt=fake_trt)[1]["timing_cache"])


def stored(path: Path, data: bytes) -> Path:
    config = fake_trt.Config()
    config.cache = fake_trt.TimingCache(data)
    assert trt_cache.save(config, str(path)) == ""
    return path


def test_builds_share_a_timing_cache(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    assert [cached(path), cached(path)] == ["new", "loaded"]
    assert path.read_bytes()[trt_cache.DIGEST_BYTES :] == b"timing;timing;"
    assert [entry.name for entry in tmp_path.iterdir()] == ["timing.cache"]


def test_a_torn_cache_never_reaches_tensorrt(tmp_path: Path) -> None:
    path = stored(tmp_path / "timing.cache", b"timing;" * 100)
    path.write_bytes(path.read_bytes()[:-50])
    assert cached(path) == "discarded: its digest is wrong"
    assert cached(path) == "loaded"


@pytest.mark.parametrize("data", [b"broken", b"another device"])
def test_a_cache_that_tensorrt_refuses_is_replaced(tmp_path: Path, data: bytes) -> None:
    path = stored(tmp_path / "timing.cache", data)
    assert cached(path) == "discarded: TensorRT refuses it"
    assert cached(path) == "loaded"


def test_a_cache_that_cannot_be_written_costs_no_build(tmp_path: Path) -> None:
    assert "not saved" in cached(tmp_path / "nowhere" / "timing.cache")


def test_a_cache_is_named_after_version_device_and_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = {
        Path(str(trt_cache.cache_path(version, device, conditions))).name
        for version in ("10.3.0", "10.7.0")
        for device in ("Orin (nvgpu)/../x", "y" * 300)
        for conditions in ([], [["sm_count", "8"]], [["sm_count", "4"]])
    }
    assert len(names) == 12
    assert any(re.fullmatch(r"timing-10\.3\.0-orin-nvgpu-x-[0-9a-f]{10}\.cache", n) for n in names)
    assert max(map(len, names)) < 80
    assert (tmp_path / "hwloop").stat().st_mode & 0o777 == 0o700
