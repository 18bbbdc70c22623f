"""From an ``nn.Module`` to ONNX bytes, and the checks that every exported graph must pass."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from hwloop.errors import CandidateError
from hwloop.records import LayerConfig

OPSET = 19
INPUT, OUTPUT = "input", "output"
MAX_RELATIVE_DIFFERENCE = 1e-4
CHECK_INPUTS = 4


def export_onnx(module: nn.Module, example: Tensor) -> bytes:
    """Export with batch-norms folded into convolutions and all shapes fixed by ``example``.

    Args:
        module: the network, in any mode; it is exported in eval mode and left in eval mode.
        example: input of the deployed shape, usually (1, C, H, W).

    Raises:
        CandidateError: stage ``export``, with the operator or the module that cannot be exported.
    """
    buffer: Any = io.BytesIO()  # the exporter writes to file objects; its annotation forgot them
    module.eval()
    inside = _InnermostModule(module)
    with _quiet() as printed, inside, torch.no_grad():
        try:
            torch.onnx.export(
                module,
                (example,),
                buffer,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=False,
            )
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            message = _explain(error, inside.where, "".join(printed))
            raise CandidateError("export", message) from error
    model = onnx.load_from_string(buffer.getvalue())
    _copy_shared_weights(model.graph)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def check_outputs(
    module: nn.Module, example: Tensor, run: Callable[[NDArray[Any]], NDArray[Any]]
) -> float:
    """Largest difference between PyTorch's outputs and ``run``'s, relative to their scale.

    The scale is the largest absolute output, so that a logit near zero does not decide.

    Args:
        run: the exported FP32 graph: (N, ...) float32 inputs to its outputs.

    Raises:
        CandidateError: stage ``check``: not finite, or more than 1e-4 apart.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (CHECK_INPUTS * len(example), *example.shape[1:])
    inputs = torch.randn(shape, generator=generator)
    with torch.no_grad():
        expected = np.concatenate(
            [module(part).numpy() for part in torch.split(inputs, len(example))]
        )
    found = run(inputs.numpy())
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        raise CandidateError("check", "the network's output is not finite")
    scale = max(float(np.abs(expected).max()), 1e-6)
    worst = float(np.abs(expected - found).max()) / scale
    if worst > MAX_RELATIVE_DIFFERENCE:
        raise CandidateError("check", f"ONNX and PyTorch differ by {worst:.1e} of the output")
    return worst


def _copy_shared_weights(graph: Any) -> None:
    """Give each user of a shared weight its own copy.

    The exporter merges equal weights through Identity nodes; quantizers need initializers.
    """
    weights = {weight.name: weight for weight in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Identity"]:
        if node.input[0] not in weights:
            continue
        copy = onnx.TensorProto()
        copy.CopyFrom(weights[node.input[0]])
        copy.name = node.output[0]
        weights[copy.name] = copy
        graph.initializer.append(copy)
        graph.node.remove(node)


# --------------------------------------------------------------------- one row of the table

_TYPES = {"fp32": onnx.TensorProto.FLOAT, "int8": onnx.TensorProto.UINT8}
_TAIL_OPS = {"relu": "Relu", "sigmoid": "Sigmoid", "hardswish": "HardSwish", "tanh": "Tanh"}
_ACTIVATION_SCALE, _WEIGHT_SCALE, _ZERO_POINT = 0.02, 0.01, 128
_WEIGHT_LIMIT = 63  # reduce_range: seven bits, as the x86 recipe without VNNI quantizes


def row_onnx(config: LayerConfig) -> bytes:
    """One fused block as a graph of its own: what a row of the latency table measures.

    Weights are seeded random numbers. An int8 row takes and gives uint8 tensors, so that no
    change of precision is timed with it; such a change is a row of its own.
    """
    return _RowGraph(config).build()


class _RowGraph:
    """Builds the nodes of one row around the operator, quantized or not."""

    def __init__(self, config: LayerConfig) -> None:
        self.config = config
        self.rng = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []
        self.int8 = config.precision == "int8"

    def build(self) -> bytes:
        config = self.config
        if config.op == "empty":
            self._node("Identity", [self._input("input", config.in_shape, "fp32")], "output")
            return self._finish(config.in_shape, "fp32")
        if config.op in ("quantize", "dequantize"):
            source, kind = ("fp32", "int8") if config.op == "quantize" else ("int8", "fp32")
            value = self._input("input", config.in_shape, source)
            op = "QuantizeLinear" if config.op == "quantize" else "DequantizeLinear"
            self._node(op, [value, *self._scale()], "output")
            return self._finish(config.in_shape, kind)
        value = self._dequantized(self._input("input", config.in_shape, config.precision))
        shape, value = self._operator(value)
        for step in config.tail:
            value = self._tail_step(step, value, shape)
        if self.int8:
            rectified = bool({"relu", "clip"} & {step.split(":")[0] for step in config.tail})
            zero_point = 0 if rectified else _ZERO_POINT
            self._quantized(value, "output", zero_point)
        else:
            self.nodes[-1].output[0] = "output"
        return self._finish(shape, config.precision)

    def _tail_step(self, step: str, value: str, shape: tuple[int, ...]) -> str:
        word, *bounds = step.split(":")
        name = f"{word}{len(self.nodes)}"
        if word == "add":
            other = self._dequantized(self._input("residual", shape, self.config.precision))
            # The runtime adds int8 tensors: the convolution's sum is rounded first.
            if self.int8 and self.config.op != "elementwise":
                value = self._dequantized(self._quantized(value, f"{name}_q", _ZERO_POINT))
            return self._node("Add", [value, other], name)
        # Quantizers drop a rectifier in front of uint8 with zero point 0, which cannot go below.
        if word == "clip" and not self.int8:
            limits = [self._weight(np.float32(item)) for item in bounds]
            return self._node("Clip", [value, *limits], name)
        if word in _TAIL_OPS and not (self.int8 and word == "relu"):
            if self.int8:
                value = self._dequantized(self._quantized(value, f"{name}_q", _ZERO_POINT))
            return self._node(_TAIL_OPS[word], [value], name)
        return value

    def _operator(self, value: str) -> tuple[tuple[int, ...], str]:
        config = self.config
        batch = config.in_shape[0]
        if config.op == "linear":
            weight = self._quantizable((config.out_channels, config.in_shape[1]))
            inputs = [value, weight, *self._bias()]
            return (batch, config.out_channels), self._node("Gemm", inputs, "linear", transB=1)
        if config.op == "elementwise":
            return config.in_shape, value
        if config.op == "globalavgpool":
            pooled = (batch, config.out_channels, 1, 1)
            return pooled, self._node("GlobalAveragePool", [value], "pool")
        pads = [*config.padding, *config.padding]
        window = {"kernel_shape": config.kernel, "strides": config.stride, "pads": pads}
        shape = (batch, config.out_channels, *_spatial(config))
        if config.op in ("maxpool", "avgpool"):
            op = "MaxPool" if config.op == "maxpool" else "AveragePool"
            return shape, self._node(op, [value], "pool", **window)
        per_group = config.in_shape[1] // config.groups
        weight = self._quantizable((config.out_channels, per_group, *config.kernel))
        inputs = [value, weight, *self._bias()]
        return shape, self._node("Conv", inputs, "conv", group=config.groups, **window)

    def _quantizable(self, shape: tuple[int, ...]) -> str:
        if not self.int8:
            return self._weight(self.rng.standard_normal(shape).astype(np.float32) * 0.1)
        quantized = self.rng.integers(-_WEIGHT_LIMIT, _WEIGHT_LIMIT + 1, shape).astype(np.int8)
        scales = self._weight(np.full(shape[0], _WEIGHT_SCALE, np.float32))
        zeros = self._weight(np.zeros(shape[0], np.int8))
        weight = self._weight(quantized)
        return self._node("DequantizeLinear", [weight, scales, zeros], "weight_dq", axis=0)

    def _bias(self) -> list[str]:
        if "bias" not in self.config.tail:
            return []
        count = self.config.out_channels
        if not self.int8:
            return [self._weight(self.rng.standard_normal(count).astype(np.float32))]
        quantized = self._weight(self.rng.integers(-500, 500, count).astype(np.int32))
        scales = self._weight(np.full(count, _ACTIVATION_SCALE * _WEIGHT_SCALE, np.float32))
        zeros = self._weight(np.zeros(count, np.int32))
        return [self._node("DequantizeLinear", [quantized, scales, zeros], "bias_dq", axis=0)]

    def _dequantized(self, value: str) -> str:
        if not self.int8:
            return value
        return self._node("DequantizeLinear", [value, *self._scale()], f"{value}_dq")

    def _quantized(self, value: str, output: str, zero_point: int) -> str:
        return self._node("QuantizeLinear", [value, *self._scale(zero_point)], output)

    def _scale(self, zero_point: int = _ZERO_POINT) -> list[str]:
        scale = self._weight(np.float32(_ACTIVATION_SCALE))
        return [scale, self._weight(np.uint8(zero_point))]

    def _input(self, name: str, shape: tuple[int, ...], precision: str) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, _TYPES[precision], shape))
        return name

    def _weight(self, value: Any) -> str:
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def _finish(self, shape: tuple[int, ...], precision: str) -> bytes:
        output = helper.make_tensor_value_info("output", _TYPES[precision], shape)
        graph = helper.make_graph(self.nodes, "row", self.inputs, [output], self.weights)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


def _spatial(config: LayerConfig) -> tuple[int, ...]:
    return tuple(
        (size + 2 * pad - kernel) // stride + 1
        for size, kernel, stride, pad in zip(
            config.in_shape[2:], config.kernel, config.stride, config.padding, strict=True
        )
    )


# ---------------------------------------------------------------------------------- errors


class _InnermostModule:
    """While active, ``where`` is the path of the module whose forward was entered last.

    It is empty when the network's own forward has returned.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.where = ""
        self.handles: list[Any] = []

    def __enter__(self) -> _InnermostModule:
        for name, child in self.module.named_modules():
            if not isinstance(child, torch.jit.ScriptModule):
                self.handles.append(child.register_forward_pre_hook(self._enter(name)))
        self.handles.append(self.module.register_forward_hook(self._leave))
        return self

    def __exit__(self, *unused: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            self.where = name

        return hook

    def _leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.where = ""


def _explain(error: BaseException, where: str, printed: str) -> str:
    text = str(error).strip().splitlines()
    first = text[0].partition("  [Caused by")[0] if text else type(error).__name__
    # Once traced, it is an operator that cannot be translated: the printed graph has its module.
    place = where or _module_of(first, printed)
    return f"layer {place!r}: {first}" if place else first


def _module_of(message: str, graph: str) -> str:
    """Path of the module whose operator ``message`` complains about, or nothing."""
    operator = re.search(r"operator '?(?:aten::)?(\w+)", message)
    found = operator and re.search(rf"aten::{operator.group(1)}\(.*?scope: (\S+)", graph)
    if not found:
        return ""
    # Class::name/Class::name/...; the children of a Sequential repeat the name of their parent.
    names = [part.rpartition("::")[2] for part in found.group(1).split("/")]
    pairs = zip(names, [*names[1:], ""], strict=True)
    return ".".join(name for name, child in pairs if name and not child.startswith(f"{name}."))


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep the exporter's talk away from the user; yields what it would have printed.

    It warns on every call that it will be replaced (docs/decisions.md has why it is used), and on
    a failure it prints the whole graph on standard output, which is not ours to write to.
    """
    printed: list[str] = []
    core: Any = torch._C
    original = getattr(core, "_jit_onnx_log", None)  # private: another torch may do without
    core._jit_onnx_log = lambda *values: printed.extend(map(str, values))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield printed
    finally:
        core._jit_onnx_log = original
