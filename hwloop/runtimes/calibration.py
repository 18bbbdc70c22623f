"""The values that a graph's tensors take on real inputs: where INT8 scales come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hwloop.errors import CandidateError, EnvironmentProblem
from hwloop.runtimes.host import batches, open_on_cpu

REDUCTIONS = ("ReduceMin", "ReduceMax")


def ranges(
    model: Any, tensors: Iterable[str], inputs: NDArray[Any], *, optimized: bool
) -> dict[str, NDArray[np.float32]]:
    """The smallest and the largest value of each tensor over all inputs.

    The graph reduces its tensors itself, so that none of them leaves it, and it runs on one
    thread, so that the same inputs give the same ranges everywhere.

    Args:
        model: a float graph with one input.
        tensors: names of float tensors within it.
        inputs: (N, ...) real inputs.
        optimized: let ONNX Runtime fuse operators, which rounds differently in the last bit.

    Returns:
        (2,) by name.

    Raises:
        CandidateError: stage ``compress``: the graph does not run, or a range is not finite.
        EnvironmentProblem: ONNX Runtime is not installed.
    """
    names = sorted(tensors)
    source = model.graph.input[0].name
    if not np.isfinite(inputs).all():  # a reduction may step over the one that is not
        raise CandidateError("compress", f"INT8: the range of tensor {source!r} is not finite")
    found = np.tile(np.array([np.inf, -np.inf], np.float32), (len(names), 1))
    try:
        session = open_on_cpu(
            _probe(model, names), needed_for="INT8 needs", threads=1, optimized=optimized
        )
        for part in batches(session, inputs):
            seen = np.reshape(session.run(None, {source: part}), found.shape)
            found = np.stack(
                [np.minimum(found[:, 0], seen[:, 0]), np.maximum(found[:, 1], seen[:, 1])], axis=1
            )
    except EnvironmentProblem:
        raise
    except Exception as error:  # ONNX Runtime's own errors share no base class
        raise CandidateError("compress", f"INT8: {type(error).__name__}: {error}") from error
    for name, extremes in zip(names, found, strict=True):
        if not np.isfinite(extremes).all():
            raise CandidateError("compress", f"INT8: the range of tensor {name!r} is not finite")
    return dict(zip(names, found, strict=True))


def _probe(model: Any, names: list[str]) -> bytes:
    """The graph with the extremes of these tensors as its only outputs.

    A tensor is reduced as soon as it is there, while it is in the cache; then its memory is free.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.node[:], probe.graph.output[:]
    left = {name: index for index, name in enumerate(names)}

    def reduce(available: Iterable[str]) -> None:
        for name in available:
            index = left.pop(name, None)
            for op in REDUCTIONS if index is not None else ():
                probe.graph.node.append(helper.make_node(op, [name], [f"{op}_{index}"], keepdims=0))

    reduce(value.name for value in model.graph.input)
    for node in model.graph.node:
        probe.graph.node.append(node)
        reduce(node.output)
    for index in range(len(names)):
        for op in REDUCTIONS:
            value = helper.make_tensor_value_info(f"{op}_{index}", onnx.TensorProto.FLOAT, ())
            probe.graph.output.append(value)
    return bytes(probe.SerializeToString())
