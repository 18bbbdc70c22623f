"""``hwloop bench`` of files that hwloop did not write: dynamic dimensions, several files, links."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import inside

import hwloop
from hwloop.errors import UsageError
from hwloop.measure import bench as benching
from hwloop.measure import modelfile
from hwloop.measure.profile_file import load_profile
from hwloop.measure.progress import Progress

Capsys = pytest.CaptureFixture[str]
Dims = Sequence[int | str | None]
QUICK = """
description = "test"
runtime = "onnxruntime"
[protocol.bench]
warmup_s = 0.01
rounds = 1
sample_s = 0.001
min_samples = 10
max_samples = 20
time_limit_s = 0.05
"""


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.toml"
    path.write_text(QUICK)
    return path


def graph(**inputs: Dims) -> onnx.GraphProto:
    """One Relu per input."""
    nodes, outputs = [], []
    for name, dims in inputs.items():
        nodes.append(helper.make_node("Relu", [name], [f"{name}_out"]))
        outputs.append(helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, dims))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in inputs.items()]
    return helper.make_graph(nodes, "g", values, outputs)


def model_of(made: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(path: Path, **inputs: Dims) -> Path:
    path.write_bytes(model_of(graph(**inputs)).SerializeToString())
    return path


def read(path: Path, *shapes: str) -> modelfile.ModelFile:
    return modelfile.read_models([path], modelfile.parse_shapes(shapes))[0]


def dims_of(data: bytes, where: str) -> dict[str, list[int | str]]:
    values = getattr(onnx.load_from_string(data).graph, where)
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
    }


# ------------------------------------------------------------------------------- dimensions


def test_a_dynamic_batch_is_one_and_the_user_is_told(
    tmp_path: Path, quick: Path, capsys: Capsys
) -> None:
    dynamic = written(tmp_path / "a.onnx", x=["batch", 3, 8])
    fixed = written(tmp_path / "b.onnx", x=[1, 3, 8])
    said = inside(capsys, "bench", fixed, dynamic, "--target", quick, "--json")
    assert said.code == 0, said.err
    assert f"{dynamic}: its batch is dynamic and taken as 1 (x 1x3x8)" in said.err
    first, second = json.loads(said.out)
    assert first["fixed_shapes"] == {}
    assert second["fixed_shapes"] == {"x": [1, 3, 8]}
    assert second["size_bytes"] == dynamic.stat().st_size


def test_another_dynamic_dimension_names_file_input_and_option(
    tmp_path: Path, quick: Path, capsys: Capsys
) -> None:
    dynamic = written(tmp_path / "a.onnx", x=["batch", 3, "height", None])
    fixed = written(tmp_path / "b.onnx", x=[1, 3, 8, 8])
    said = inside(capsys, "bench", dynamic, fixed, "--target", quick)
    assert said.code == 2
    assert str(dynamic) in said.err
    assert "'x'" in said.err
    assert "batchx3xheightx?" in said.err
    assert "--shape x:1x3x224x224" in said.err
    assert str(fixed) not in said.err


def test_a_shape_on_the_command_line_fixes_every_file_that_has_the_input(
    tmp_path: Path, quick: Path, capsys: Capsys
) -> None:
    first = written(tmp_path / "a.onnx", x=["batch", 3, "height", "width"])
    second = written(tmp_path / "b.onnx", x=["n", 3, "h", 8])
    said = inside(capsys, "bench", first, second, "--target", quick, "--shape", "x:2x3x8x8")
    assert said.code == 0, said.err
    assert "taken as 1" not in said.err
    found = hwloop.bench(first, second, target=str(quick), shapes={"x": (2, 3, 8, 8)})
    assert [record["fixed_shapes"] for record in found] == [{"x": [2, 3, 8, 8]}] * 2


def test_a_name_is_replaced_everywhere_that_it_occurs(tmp_path: Path) -> None:
    made = graph(x=["n", 3, "h", "w"], y=["n", "h"])
    inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["n", 3, "h", "w"])
    made.value_info.append(inner)
    path = tmp_path / "a.onnx"
    path.write_bytes(model_of(made).SerializeToString())
    found = read(path, "x:2x3x5x7")
    assert dims_of(found.data, "input") == {"x": [2, 3, 5, 7], "y": [2, 5]}
    assert dims_of(found.data, "output") == {"x_out": [2, 3, 5, 7], "y_out": [2, 5]}
    assert dims_of(found.data, "value_info") == {"inner": [2, 3, 5, 7]}
    assert found.fixed == {"x": (2, 3, 5, 7), "y": (2, 5)}


def test_a_file_of_fixed_shapes_is_sent_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", x=[1, 3])
    assert read(path, "x:1x3").data == path.read_bytes()
    assert read(path).fixed == {}


def test_an_input_without_a_shape_gets_the_one_that_is_named(tmp_path: Path) -> None:
    made = model_of(graph(x=["a", "b"]))
    made.graph.input[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "a.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(UsageError, match=r"'x' has dynamic dimensions.*without a shape"):
        read(path)
    assert dims_of(read(path, "x:1x3").data, "input") == {"x": [1, 3]}


def test_a_batch_that_is_another_inputs_width_is_no_batch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'y' has dynamic dimensions besides its batch: 4xn"):
        read(written(tmp_path / "a.onnx", x=["n", 3], y=[4, "n"]))


def test_weights_that_are_listed_as_inputs_need_no_shape(tmp_path: Path) -> None:
    made = graph(x=[1, 3], w=["k", 3])
    made.initializer.append(numpy_helper.from_array(np.ones((2, 3), np.float32), "w"))
    path = tmp_path / "a.onnx"
    path.write_bytes(model_of(made).SerializeToString())
    assert read(path).inputs == ("x",)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("x", "'x' is no shape"),
        ("x:", "is no shape"),
        (":1x3", "is no shape"),
        ("x:1x3x", "is no shape"),
        ("x:0x3", "is no shape"),
        ("x:-1x3", "is no shape"),
        ("x:1.5x3", "is no shape"),
        ("x:1x3x" + "9" * 5000, "is no shape"),
        ("x:99999x99999", "larger than an input can be"),
        ("x:" + "x".join("1" * 9), "is no shape"),
        ("z:1x3", "no file has an input 'z'"),
        ("x:1x4", "input 'x' is batchx3, not 1x4"),
        ("x:1x3x1", "input 'x' is batchx3, not 1x3x1"),
    ],
)
def test_a_shape_that_cannot_be_meant_is_refused(
    tmp_path: Path, quick: Path, capsys: Capsys, shape: str, said: str
) -> None:
    path = written(tmp_path / "a.onnx", x=["batch", 3])
    found = inside(capsys, "bench", path, "--target", quick, "--shape", shape)
    assert found.code == 2
    assert said in found.err
    assert "fix:" in found.err


def test_two_shapes_for_one_input_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", x=["batch", 3])
    with pytest.raises(UsageError, match="two shapes for input 'x'"):
        read(path, "x:1x3", "x:2x3")


@pytest.mark.parametrize("shapes", [{"x": (True, 3)}, {"x": ("1", 3)}, {"x": ()}, {"x": (1.0, 3)}])
def test_shapes_of_python_are_checked_too(tmp_path: Path, quick: Path, shapes: object) -> None:
    path = written(tmp_path / "a.onnx", x=["batch", 3])
    with pytest.raises(UsageError, match="is no shape"):
        hwloop.bench(path, target=str(quick), shapes=shapes)  # type: ignore[arg-type]


def test_the_file_that_fails_is_the_one_that_is_blamed(
    tmp_path: Path, quick: Path, capsys: Capsys
) -> None:
    good = written(tmp_path / "good.onnx", x=[1, 3])
    bad = tmp_path / "bad.onnx"
    made = model_of(graph(x=[1, 3]))
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    bad.write_bytes(made.SerializeToString())
    for order in ([good, bad], [bad, good]):
        said = inside(capsys, "bench", *order, "--target", quick)
        assert said.code == 2, said.err
        assert f"{bad} does not run on quick" in said.err


# ----------------------------------------------------------------------------- external data


def external(name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    return tensor


def in_an_initializer() -> onnx.GraphProto:
    made = graph(x=[1, 3])
    made.initializer.append(external())
    return made


def in_an_attribute() -> onnx.GraphProto:
    made = graph(x=[1, 3])
    made.node.append(helper.make_node("Constant", [], ["c"], value=external()))
    return made


def in_a_subgraph() -> onnx.GraphProto:
    made = graph(x=[1, 3], c=[1])
    inner = graph()
    inner.node.append(helper.make_node("Constant", [], ["k"], value=external()))
    made.node.append(helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=graph()))
    return made


def in_a_sparse_tensor() -> onnx.GraphProto:
    made = graph(x=[1, 3])
    made.sparse_initializer.add().values.CopyFrom(external())
    return made


def without_saying_so() -> onnx.GraphProto:
    made = in_an_initializer()
    made.initializer[0].ClearField("data_location")
    return made


@pytest.mark.parametrize(
    "make",
    [in_an_initializer, in_an_attribute, in_a_subgraph, in_a_sparse_tensor, without_saying_so],
)
def test_a_file_that_reads_other_files_is_refused(
    tmp_path: Path, quick: Path, capsys: Capsys, make: object
) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(model_of(make()).SerializeToString())  # type: ignore[operator]
    said = inside(capsys, "bench", path, "--target", quick)
    assert said.code == 2
    assert "in another file" in said.err
    assert 'onnx.save(onnx.load("a.onnx"), "single.onnx")' in said.err


# --------------------------------------------------------------------------------- the paths


def a_run(folder: Path) -> Path:
    best = folder / "candidates" / "1"
    best.mkdir(parents=True)
    written(best / "model.onnx", x=[1, 3])
    written(folder / "dense.onnx", x=[1, 3])
    (folder / "best").symlink_to("candidates/1")
    return folder


def test_a_run_is_its_best_network_also_behind_a_link(
    tmp_path: Path, quick: Path, capsys: Capsys
) -> None:
    run = a_run(tmp_path / "run")
    link = tmp_path / "link"
    link.symlink_to(run)
    file = tmp_path / "link.onnx"
    file.symlink_to(run / "dense.onnx")
    said = inside(capsys, "bench", link, file, "--target", quick)
    assert said.code == 0, said.err


@pytest.mark.parametrize("name", ["best", "best/model.onnx", "dense.onnx"])
def test_a_run_may_not_lead_out_of_its_folder(
    tmp_path: Path, quick: Path, capsys: Capsys, name: str
) -> None:
    run = a_run(tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    written(elsewhere / "model.onnx", x=[1, 3])
    (run / name).unlink()
    (run / name).symlink_to(elsewhere if name == "best" else elsewhere / "model.onnx")
    said = inside(capsys, "bench", run, "--target", quick)
    assert said.code == 2
    assert "leads out of" in said.err


def test_links_in_a_circle_end(tmp_path: Path, quick: Path, capsys: Capsys) -> None:
    run = a_run(tmp_path / "run")
    (run / "dense.onnx").unlink()
    (run / "dense.onnx").symlink_to("dense.onnx")
    assert inside(capsys, "bench", run, "--target", quick).code == 2


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 << 30)


def nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize("make", [a_pipe, a_huge_file, Path.mkdir, nothing])
def test_what_is_no_file_is_refused_without_a_wait(
    tmp_path: Path, quick: Path, capsys: Capsys, make: object
) -> None:
    path = tmp_path / "a.onnx"
    make(path)  # type: ignore[operator]
    said = inside(capsys, "bench", path, "--target", quick)
    assert said.code == 2
    assert "a.onnx" in said.err


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "/proc/self/mem", "x" * 5000, "a\0b"])
def test_devices_and_impossible_names_are_refused(
    quick: Path, capsys: Capsys, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert inside(capsys, "bench", path, "--target", quick).code == 2


# -------------------------------------------------------------------------- what is said of it


def products(path: Path, size: int, count: int) -> Path:
    """So many products of square matrices, one after the other."""
    weights = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32) / size
    names = [f"t{number}" for number in range(count + 1)]
    nodes = [
        helper.make_node("MatMul", [before, "w"], [after]) for before, after in pairwise(names)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size])
        for name in (names[0], names[-1])
    ]
    made = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")]
    )
    path.write_bytes(model_of(made).SerializeToString())
    return path


def test_a_timer_that_shares_nothing_with_it_finds_the_same_ratio(tmp_path: Path) -> None:
    pair = [products(tmp_path / "a.onnx", 96, 9), products(tmp_path / "b.onnx", 96, 3)]
    found = benching.compare(pair, profile=load_profile("cpu"), progress=Progress())[1]
    timer = Path(__file__).parent / "data" / "plain_timer.py"
    words = [sys.executable, str(timer), *map(str, pair), "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    # Other tests run beside this one; benchmarks/interference.py has both on a quiet machine.
    assert json.loads(done.stdout)["ratio"] == pytest.approx(found["speedup"], rel=0.15)
    assert 2.5 < found["speedup"] < 3.5


def test_clock_and_disturbance_are_told(tmp_path: Path, quick: Path, capsys: Capsys) -> None:
    files = [written(tmp_path / name, x=[1, 3, 8]) for name in ("a.onnx", "b.onnx")]
    said = inside(capsys, "bench", *files, "--target", quick, "--json")
    second = json.loads(said.out)[1]
    assert second["clock"] in ("thread", "wall")
    assert set(second["disturbance"]) == {
        *("disturbed_share", "interrupted_share"),
        *("core_taken_share", "other_cores_busy_share"),
    }
