"""An ONNX file that somebody else made, on its way to a target: whole, plain, of fixed shapes.

Every runtime then sees the same bytes. A file whose tensors lie elsewhere is refused, because it
names the paths that would be read.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from hwloop.errors import UsageError, closest
from hwloop.files import read_file
from hwloop.parsing import one_line
from hwloop.tasks.calls import shown

LARGEST_FILE_BYTES = (1 << 31) - 1  # protobuf's own limit
LARGEST_INPUT = 1 << 28  # elements: a gigabyte of FP32
MOST_DIMENSIONS = 8
MOST_SHAPES = 1000
EXAMPLE = (1, 3, 224, 224)
SHAPE_EXAMPLE = "--shape input:1x3x224x224"
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One file that is measured.

    Attributes:
        data: the bytes that are sent: the file's own, or with its dynamic dimensions fixed.
        size_bytes: of the file.
        fixed: the inputs whose dynamic dimensions were fixed, as they are measured.
        assumed: those of them whose batch nobody named: it was taken as 1.
    """

    path: Path
    data: bytes
    size_bytes: int
    inputs: tuple[str, ...]
    fixed: dict[str, Shape] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()


def parse_shapes(shapes: Mapping[str, Sequence[int]] | Iterable[str] | None) -> dict[str, Shape]:
    """``name:1x3x224x224`` for any number of inputs, or the same as a mapping.

    Raises:
        UsageError: what is no shape, or two shapes for one input.
    """
    if shapes is None:
        return {}
    if isinstance(shapes, Mapping):
        pairs = [(name, _listed(sizes, MOST_DIMENSIONS + 1)) for name, sizes in shapes.items()]
        return {str(name): _shape(name, sizes) for name, sizes in pairs}
    found: dict[str, Shape] = {}
    for text in [shapes] if isinstance(shapes, str) else _listed(shapes, MOST_SHAPES):
        name, colon, sizes = str(text).rpartition(":")
        parts = sizes.split("x")
        if not colon or not name or not all(p.isascii() and p.isdigit() for p in parts):
            raise UsageError(f"{shown(text)} is no shape of an input", SHAPE_EXAMPLE)
        shape = _shape(text, [int(part) if len(part) < 12 else 0 for part in parts])
        if found.setdefault(name, shape) != shape:
            raise UsageError(f"two shapes for input {name!r}", SHAPE_EXAMPLE)
    return found


def _listed(given: Any, most: int) -> list[Any]:
    """The first of what may be given as an iterable, and may not end. Raises UsageError."""
    try:
        return list(itertools.islice(given, most))
    except Exception as error:  # the boundary: it is the user's code that is iterated
        raise UsageError(f"{shown(given)} is no shape of an input", SHAPE_EXAMPLE) from error


def _shape(what: object, sizes: list[Any]) -> Shape:
    whole = all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in sizes)
    if not whole or not 1 <= len(sizes) <= MOST_DIMENSIONS or min(sizes) < 1:
        raise UsageError(f"{shown(what)} is no shape of an input: {shown(sizes)}", SHAPE_EXAMPLE)
    if math.prod(map(int, sizes)) > LARGEST_INPUT:
        raise UsageError(f"{shown(what)} is larger than an input can be", SHAPE_EXAMPLE)
    return tuple(map(int, sizes))


def read_models(paths: Sequence[Path], shapes: Mapping[str, Shape]) -> list[ModelFile]:
    """Every file, checked and fixed; a shape counts for each file that has the input.

    Raises:
        UsageError: a file that is no ONNX file by itself, an input whose shape is unknown, or a
            shape that no file has an input for.
    """
    found = [_read(path, shapes) for path in paths]
    known = sorted({printable(name) for model in found for name in model.inputs})
    for name in shapes:
        if not any(name in model.inputs for model in found):
            hint = f"--shape {known[0]}:1x3x224x224" if known else "leave --shape out"
            raise UsageError(f"no file has an input {name!r}: {closest(name, known)}", hint)
    return found


def _read(path: Path, shapes: Mapping[str, Shape]) -> ModelFile:
    data = read_file(
        path,
        what="an ONNX file",
        limit_bytes=LARGEST_FILE_BYTES,
        hint="name ONNX files, or folders of runs",
    )
    try:
        model = onnx.load_from_string(data)
        _refuse_external(path, model)
        graph = model.graph
        stored = {tensor.name for tensor in graph.initializer}
        stored |= {tensor.values.name for tensor in graph.sparse_initializer}
        inputs = [value for value in graph.input if value.name not in stored]
        fixed, assumed = _fix(path, graph, inputs, shapes)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        reason = printable(str(error).partition("\n")[0]) or "it cannot be parsed"
        raise UsageError(f"{path} is no valid ONNX file: {reason}", "export it again") from error
    return ModelFile(
        path=path,
        data=model.SerializeToString() if fixed else data,
        size_bytes=len(data),
        inputs=tuple(value.name for value in inputs),
        fixed=fixed,
        assumed=assumed,
    )


def _refuse_external(path: Path, model: Any) -> None:
    """Tensors may lie anywhere in a model: in subgraphs, attributes, functions."""
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and (
            message.data_location == onnx.TensorProto.EXTERNAL or message.external_data
        ):
            raise UsageError(
                f"{path} keeps tensor {message.name!r:.80} in another file",
                f'onnx.save(onnx.load("{path.name}"), "single.onnx")   writes one file',
            )


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for about, value in message.ListFields():
        if about.message_type is not None:
            for item in [value] if isinstance(value, Message) else value:
                yield from _messages(item)


# ------------------------------------------------------------------------- dynamic dimensions


def _fix(
    path: Path, graph: Any, inputs: Sequence[Any], shapes: Mapping[str, Shape]
) -> tuple[dict[str, Shape], tuple[str, ...]]:
    """Write a size into every dynamic dimension of the inputs, and wherever its name occurs."""
    dynamic = [value for value in inputs if _is_dynamic(path, value)]
    sizes: dict[str, int] = {}
    for value in inputs:
        if value.name in shapes:
            _take(path, value, shapes[value.name], sizes)
    _spread(graph, sizes)
    batches = [value for value in dynamic if _is_dynamic(path, value)]
    for value in batches:
        _take_batch(path, value, sizes)
    _spread(graph, sizes)
    for value in inputs:
        if math.prod(_sizes(value)) > LARGEST_INPUT:
            raise UsageError(
                f"{path}: input {value.name!r} is too large to be timed", "a smaller input"
            )
    fixed = {value.name: _sizes(value) for value in dynamic}
    return fixed, tuple(value.name for value in batches)


def _is_dynamic(path: Path, value: Any) -> bool:
    if not value.type.HasField("tensor_type"):
        raise UsageError(
            f"{path}: input {value.name!r} is no tensor", "export the network with tensors only"
        )
    tensor = value.type.tensor_type
    return not tensor.HasField("shape") or any(size < 1 for size in _sizes(value))


def _sizes(value: Any) -> Shape:
    """The dimensions of an input, 0 for a dynamic one."""
    return tuple(max(int(dim.dim_value), 0) for dim in value.type.tensor_type.shape.dim)


def _take(path: Path, value: Any, shape: Shape, sizes: dict[str, int]) -> None:
    """Give an input the shape that the user named."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        for _ in shape:
            tensor.shape.dim.add()
    dims = list(tensor.shape.dim)
    agrees = len(dims) == len(shape)
    for dim, size in zip(dims, shape, strict=False):
        agrees = agrees and (dim.dim_value < 1 or dim.dim_value == size)
        if dim.dim_param:
            agrees = agrees and sizes.setdefault(dim.dim_param, size) == size
    if not agrees:
        raise UsageError(
            f"{path}: input {value.name!r} is {_described(value)}, not {_text(shape)}",
            f"--shape {printable(value.name)}:... that agrees with it",
        )
    for dim, size in zip(dims, shape, strict=True):
        dim.dim_value = size


def _take_batch(path: Path, value: Any, sizes: dict[str, int]) -> None:
    """Take an unknown first dimension as 1. Raises UsageError where another one is unknown."""
    dims = list(value.type.tensor_type.shape.dim)
    if not dims or any(dim.dim_value < 1 for dim in dims[1:]):
        known = [str(dim.dim_value) if dim.dim_value > 0 else "224" for dim in dims[1:]]
        raise UsageError(
            f"{path}: input {value.name!r} has dynamic dimensions besides its batch: "
            f"{_described(value)}",
            f"--shape {printable(value.name)}:{_text(['1', *known] if dims else EXAMPLE)}",
        )
    if dims[0].dim_param:
        sizes[dims[0].dim_param] = 1
    dims[0].dim_value = 1


def _spread(graph: Any, sizes: Mapping[str, int]) -> None:
    """Replace the names of dimensions by their sizes everywhere in the graph."""
    for message in _messages(graph):
        if isinstance(message, onnx.TensorShapeProto.Dimension) and message.dim_param in sizes:
            message.dim_value = sizes[message.dim_param]


def _described(value: Any) -> str:
    dims = value.type.tensor_type.shape.dim
    words = [str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?" for dim in dims]
    return printable("x".join(words)) if words else "without a shape"


def _text(shape: Sequence[object]) -> str:
    return "x".join(map(str, shape))


def note(model: ModelFile) -> str | None:
    """What a user has to know about how a file is measured, or None."""
    if not model.assumed:
        return None
    taken = ", ".join(f"{printable(name)} {_text(model.fixed[name])}" for name in model.assumed)
    return f"{model.path}: its batch is dynamic and taken as 1 ({taken}); --shape names another"


def printable(text: str) -> str:
    """A word out of a file, fit for a terminal."""
    return one_line(text, 200)
