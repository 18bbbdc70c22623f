"""Which operators stay FP32 where FP16 ships: decided once for a network, on this machine.

ONNX Runtime has FP16 kernels for few operators on a CPU. It runs the others in FP32 and leaves out
the roundings in between, so an overflow inside a network need not reach its outputs. Sizes are
therefore read from the FP32 graph; the FP16 graph tells how far its outputs are off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from hwloop.compress.export import check_deployed, check_inputs, host_run
from hwloop.errors import CandidateError, EnvironmentProblem
from hwloop.parsing import ANY_TEXT, a_list, a_text, read_record
from hwloop.runtimes.fp16 import FALLBACKS, LARGEST, NORMS, stays_float, to_fp16
from hwloop.runtimes.host import batches, open_on_cpu

HEADROOM = 4
"""Other inputs, and networks that were pruned and trained on, go beyond what a few inputs reach."""

SQUARED = (*NORMS, "ReduceSumSquare", "ReduceL2")
SUMMED = (*SQUARED, "ReduceMean", "ReduceSum", "ReduceL1")
LONGEST_REASON = 200


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What stays FP32 in a network that ships in FP16.

    Attributes:
        operators: ONNX types, one of :data:`hwloop.runtimes.fp16.FALLBACKS`.
        reason: why not fewer; empty where none stays.
    """

    operators: tuple[str, ...] = ()
    reason: str = ""

    def in_graph(self, graph: bytes) -> tuple[str, ...]:
        """Those of the operators that a graph has, by name."""
        found = {node.op_type for node in onnx.load_from_string(graph).graph.node}
        return tuple(sorted(found & set(self.operators)))

    @staticmethod
    def from_json(value: Any) -> Kept:
        """Inverse of ``to_json``; raises ValueError on a wrong field."""
        checks = {"operators": a_list(a_text(), 0, 100), "reason": a_text(1000, ANY_TEXT)}
        found = read_record(Kept, value, checks)
        if found.operators not in FALLBACKS:
            raise ValueError("these operators are not kept together")
        return found


def kept_float(graph: bytes, example: Tensor, inputs: NDArray[np.float32]) -> Kept:
    """The first of the fall-backs with which FP16 holds the network.

    It does when no FP16 tensor, and no sum that an FP16 operator forms, comes within a quarter of
    FP16's largest number, and the outputs stay within the bound of
    :func:`hwloop.compress.export.check_deployed`. The last fall-back is for the target to judge.

    Args:
        graph: the exported FP32 graph.
        example: an input of the deployed shape.
        inputs: (N, ...) real inputs; random ones are added.

    Raises:
        CandidateError: stage ``export``: see :func:`hwloop.runtimes.fp16.to_fp16`.
        EnvironmentProblem: ONNX Runtime is not installed.
    """
    try:
        sizes = _sizes(graph, np.concatenate([check_inputs(example).numpy(), inputs]))
    except EnvironmentProblem:
        raise
    except Exception as error:  # ONNX Runtime's own errors share no base class
        return Kept(operators=FALLBACKS[-1], reason=f"ranges are not known: {_short(error)}")
    reason = ""
    for operators in FALLBACKS[:-1]:
        problem = _too_large(sizes, stays_float(operators)) or _differs(graph, operators, example)
        if not problem:
            return Kept(operators=operators, reason=reason)
        reason = problem
    return Kept(operators=FALLBACKS[-1], reason=reason)


def _differs(graph: bytes, operators: tuple[str, ...], example: Tensor) -> str:
    half = to_fp16(graph, operators)
    try:
        check_deployed(example, host_run(graph), host_run(half), int8=False)
    except EnvironmentProblem:
        raise
    except CandidateError as error:
        return error.message.removeprefix("check: ")
    except Exception as error:  # ONNX Runtime's own errors share no base class
        return f"ONNX Runtime cannot run it in FP16: {_short(error)}"
    return ""


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON]


# ------------------------------------------------------------------------------------- sizes


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """A tensor, or a sum that an operator forms on its way.

    Attributes:
        operators: those that write or read it; it is FP32 when all of them are.
        terms: nodes that compute what is measured; its magnitude is that of the last one's output.
    """

    what: str
    operators: frozenset[str]
    tensor: str
    terms: tuple[Any, ...] = ()


def _too_large(sizes: list[tuple[_Probe, float]], floats: frozenset[str]) -> str:
    """What FP16 cannot hold when the operators ``floats`` stay FP32, the worst, or nothing."""
    halves = [(size, probe.what) for probe, size in sizes if not probe.operators <= floats]
    size, what = max(halves, default=(0.0, ""))
    if size <= LARGEST / HEADROOM:
        return ""
    return f"{what} reaches {size:.3g}, and FP16 ends at {LARGEST:.0f}"


def _sizes(graph: bytes, inputs: NDArray[np.float32]) -> list[tuple[_Probe, float]]:
    """The largest finite magnitude of every tensor and every long sum over the inputs.

    One number for each of them leaves the runtime, so nothing of size is kept.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
    probes = [*_tensors(model.graph), *_sums(model.graph)]
    source = model.graph.input[0].name
    del model.graph.output[:]
    for index, probe in enumerate(probes):
        tensor = probe.terms[-1].output[0] if probe.terms else probe.tensor
        model.graph.node.extend([*probe.terms, *_largest_finite(tensor, f"largest_{index}")])
        answer = helper.make_tensor_value_info(f"largest_{index}", onnx.TensorProto.FLOAT, ())
        model.graph.output.append(answer)
    zero = onnx.numpy_helper.from_array(np.asarray(0, np.float32), "nothing_finite")
    model.graph.initializer.append(zero)
    session = open_on_cpu(model.SerializeToString(), needed_for="FP16 needs")
    found = [session.run(None, {source: part}) for part in batches(session, inputs)]
    return list(zip(probes, np.asarray(found, np.float32).max(axis=0).tolist(), strict=True))


def _largest_finite(tensor: str, answer: str) -> list[Any]:
    # Infinity is what masks are made of: FP16 has it.
    make = helper.make_node
    return [
        make("Abs", [tensor], [f"{answer}_abs"]),
        make("IsInf", [f"{answer}_abs"], [f"{answer}_isinf"]),
        make("Where", [f"{answer}_isinf", "nothing_finite", f"{answer}_abs"], [f"{answer}_finite"]),
        make("ReduceMax", [f"{answer}_finite"], [answer], keepdims=0),
    ]


def _tensors(graph: Any) -> Iterator[_Probe]:
    """Every FP32 tensor that is computed; constants are the converter's to check."""
    operators: dict[str, set[str]] = {}
    for node in graph.node:
        for name in (*node.input, *node.output):
            operators.setdefault(name, set()).add(node.op_type)
    fixed = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    for value in (*graph.input, *graph.value_info, *graph.output):
        name = value.name
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and name not in fixed:
            used = frozenset(operators.get(name, ()))
            yield _Probe(what=f"tensor {name!r}", operators=used, tensor=name)


def _sums(graph: Any) -> Iterator[_Probe]:
    """What operators add up before they divide or take a root: a kernel may do that in FP16."""
    values = [*graph.input, *graph.value_info, *graph.output]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    for number, node in enumerate(node for node in graph.node if node.op_type in SUMMED):
        tensor, words = node.input[0], f"sum_{number}"
        power = "Mul" if node.op_type in SQUARED else "Abs"
        inputs = [tensor, tensor] if power == "Mul" else [tensor]
        total = helper.make_node("ReduceSum", [f"{words}_terms"], [f"{words}_total"], keepdims=0)
        made = [helper.make_node(power, inputs, [f"{words}_terms"])]
        if node.op_type in NORMS:
            first = _attribute(node, "axis", -1) if node.op_type == NORMS[0] else 2
            rank = ranks[tensor]
            axes = onnx.numpy_helper.from_array(np.arange(first % rank, rank))
            made.append(helper.make_node("Constant", [], [f"{words}_axes"], value=axes))
            total.input.append(f"{words}_axes")
        elif len(node.input) > 1:
            total.input.append(node.input[1])
        yield _Probe(
            what=f"the sum in {node.op_type} {node.name!r}",
            operators=frozenset({node.op_type}),
            tensor=tensor,
            terms=(*made, total),
        )


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)
