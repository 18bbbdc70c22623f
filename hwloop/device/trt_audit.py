"""What TensorRT really made: precisions, copies and sparse kernels, from its own descriptions.

The request is no evidence. Pure functions, but for :func:`census`, on text that TensorRT writes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

SPARSITY = "(Sparsity)"
# In this order: "UInt8" contains "int8" and "BFloat16" contains "float".
_TYPES = (
    ("uint8", "uint8"),
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("bf16|bfloat16", "bf16"),
    ("fp16|half", "fp16"),
    ("int4", "int4"),
    ("fp4", "fp4"),
    ("int32", "int32"),
    ("int64", "int64"),
    ("bool", "bool"),
    ("fp32|float", "fp32"),
)
# Up to 10.0 a list of names, later a count and then the names.
_ELIGIBLE = re.compile(
    r"Layers eligible for sparse math:(?P<names>.*)"
    r"|Found (?P<count>\d+) layer\(s\) eligible to use sparse tactics"
)
_PICKED = re.compile(
    r"picked sparse implementation for layers:(?P<names>.*)"
    r"|Chose (?P<count>\d+) layer\(s\) using sparse tactics"
)


def census(network: Any) -> dict[str, int]:
    """Layers of a parsed network by the type of their first output, in the order of the names."""
    found: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.num_outputs:
            output = layer.get_output(0)
            found[str(output.dtype).rsplit(".", 1)[-1]] += 1
    return dict(sorted(found.items()))


def sparsity(lines: Iterable[str]) -> dict[str, int | None]:
    """Layers that could use 2:4 kernels and layers that do; None where the log does not say.

    The builder repeats the lines in each pass: the last ones are about the engine.
    """
    counts: dict[str, int | None] = {"eligible": None, "picked": None}
    for line in lines:
        for key, pattern in (("eligible", _ELIGIBLE), ("picked", _PICKED)):
            match = pattern.search(line)
            if match and match["count"] is not None:
                counts[key] = int(match["count"])
            elif match:
                counts[key] = len([name for name in match["names"].split(",") if name.strip()])
    return counts


def engine_audit(text: str) -> dict[str, Any]:
    """Summary of the inspector's JSON for a whole engine, as 10.x and 11.x write it.

    Returns:
        layers: executed layers; precisions: share of them by precision; reformats: copies that
        only change a layout or a type; sparse_kernels: layers whose kernel's name says sparse;
        detailed: False where the engine was built without details, then only ``layers`` counts;
        tensors: inputs and outputs with precision and shape.

    A layer's precision is that of its weights, else of its first output: an int8 convolution may
    write fp16.
    """
    # Names are written as they are: some releases put control characters into them.
    found = json.loads(text, strict=False)
    layers = found if isinstance(found, list) else found.get("Layers", [])
    details = [entry for entry in layers if isinstance(entry, dict)]
    executed = [entry for entry in details if entry.get("LayerType") != "NoOp"]
    precisions = Counter(_precision(entry) for entry in executed)
    return {
        "layers": len(executed) if details else len(layers),
        "detailed": bool(details),
        "precisions": {
            name: count / len(executed) for name, count in sorted(precisions.items()) if executed
        },
        "reformats": sum(_is_reformat(entry) for entry in executed),
        "sparse_kernels": sum("sparse" in str(entry.get("TacticName", "")) for entry in executed),
        "tensors": [] if isinstance(found, list) else _tensors(found),
    }


def _precision(entry: dict[str, Any]) -> str:
    weights = entry.get("Weights")
    if isinstance(weights, dict) and weights.get("Type"):
        return _named_type(str(weights["Type"]))
    outputs = entry.get("Outputs") or [{}]
    return _named_type(_type_text(outputs[0]))


def _type_text(tensor: dict[str, Any]) -> str:
    # 11.x splits the format from the type.
    return str(tensor.get("DataType") or tensor.get("Format/Datatype") or "")


def _named_type(text: str) -> str:
    for pattern, name in _TYPES:
        if re.search(pattern, text, re.IGNORECASE):
            return name
    return "unknown"


def _is_reformat(entry: dict[str, Any]) -> bool:
    name = str(entry.get("Name", ""))
    return entry.get("LayerType") == "Reformat" or name.startswith("Reformatting CopyNode")


def _tensors(found: dict[str, Any]) -> list[dict[str, Any]]:
    """10.x lists only names under ``Bindings``; 11.x describes ``I/O Tensors``."""
    listed = found.get("I/O Tensors") or found.get("Bindings") or []
    tensors = [tensor if isinstance(tensor, dict) else {"Name": tensor} for tensor in listed]
    described = {
        tensor.get("Name"): tensor
        for entry in found.get("Layers", [])
        if isinstance(entry, dict)
        for tensor in [*entry.get("Inputs", []), *entry.get("Outputs", [])]
    }
    whole = [{**described.get(tensor.get("Name"), {}), **tensor} for tensor in tensors]
    return [
        {
            "name": str(tensor.get("Name")),
            "precision": _named_type(_type_text(tensor)),
            "shape": [int(size) for size in tensor.get("Dimensions", [])],
        }
        for tensor in whole
    ]
