"""Digests of everything that decides a run's figures: network, graph, data, metric, target."""

from __future__ import annotations

import hashlib
from typing import Any

import onnx
import torch
from torch import nn

from hwloop.measure.profile import TargetProfile
from hwloop.parsing import digest, to_json
from hwloop.run.versions import RESULTS
from hwloop.task import Task
from hwloop.tasks.calls import call_user
from hwloop.tasks.protocol import SPLITS
from hwloop.tasks.sources import PLAIN, code_digest, tensor_bytes
from hwloop.tasks.splits import content_of

SCORING = ("metric", "loss", "distillation_loss", "drop", "metric_name", "higher_is_better")


def inputs_of(
    task: Task, module: nn.Module, graph: bytes, profile: TargetProfile
) -> dict[str, Any]:
    """Digest, or record with a digest, by the name of what it is about; plain JSON values.

    Args:
        graph: the dense network as exported, in FP32.

    Raises:
        UsageError: the user's data cannot be read.
    """
    found: dict[str, Any] = {
        "weights": _weights(module),
        "architecture": _architecture(module, graph),
        "example": digest(list(task.example().shape)),
        "scoring": _scoring(task),
        "target": _target(profile),
        "hwloop": dict(RESULTS),
    }
    for name in SPLITS:
        what = f"reading the {name} split of the task {task.name}"
        split = call_user(getattr(task, name), what=what)
        found[name] = to_json(call_user(content_of, split, what=what))
    return found


def doubts(inputs: dict[str, Any]) -> list[str]:
    """What the digests do not cover, as sentences for the report."""
    found = []
    for name in SPLITS:
        content = inputs[name]
        if not content["repeatable"]:
            found.append(
                f"the {name} split gives other values each time: "
                "a change of its data is noticed by its targets and identities only"
            )
        elif content["read"] < content["of"]:
            found.append(
                f"the {name} split is known by a sampled digest: "
                f"{content['read']} of {content['of']} samples"
            )
    return found


def _scoring(task: Task) -> str:
    """Of what computes the metric and the losses; the usual share of labels is no part of it."""
    usual = task.label_share == Task.label_share
    names = SCORING if usual else (*SCORING, "label_share")
    return code_digest(*(getattr(task, name) for name in names), owner=task)


def _weights(module: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, torch.Tensor):  # a module may keep other state of its own
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            found.update(tensor_bytes(tensor))
    return found.hexdigest()


def _architecture(module: nn.Module, graph: bytes) -> str:
    """The exported graph without weights, and what its modules hold besides parameters."""
    found = hashlib.sha256(_structure(onnx.load_from_string(graph).graph).encode())
    for name, child in module.named_modules():
        held = {
            key: value
            for key, value in sorted(vars(child).items())
            if key != "training" and not key.startswith("_") and _is_value(value)
        }
        # Also what forward() does while training: the graph tells of deployment only.
        code = code_digest(held, type(child).forward, owner=child)
        found.update(f"{name} {type(child).__qualname__} {code};".encode())
    return found.hexdigest()


def _is_value(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_value(item) for item in value)
    return isinstance(value, (*PLAIN, torch.Tensor))


def _structure(graph: Any) -> str:
    """Operators, attributes and connections; names are numbered, because exporters vary them."""
    numbers: dict[str, int] = {}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers)) if name else -1

    lines = [f"input {number(value.name)} {_shape(value)}" for value in graph.input]
    shapes = {item.name: (item.data_type, list(item.dims)) for item in graph.initializer}
    for node in graph.node:
        attributes = sorted(
            hashlib.sha256(attribute.SerializeToString(deterministic=True)).hexdigest()
            for attribute in node.attribute
        )
        reads = [(number(name), shapes.get(name)) for name in node.input]
        lines.append(f"{node.op_type} {reads} {[number(n) for n in node.output]} {attributes}")
    lines += [f"output {number(value.name)}" for value in graph.output]
    return "\n".join(lines)


def _shape(value: Any) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _target(profile: TargetProfile) -> str:
    """What of a profile changes a figure; where it is and how long to wait for it do not."""
    settings = {key: value for key, value in profile.settings.items() if key != "faults"}
    parts = [profile.runtime, settings, profile.align, profile.space.asked(), profile.recipe]
    return digest([*parts, profile.protocols, profile.simulated])
