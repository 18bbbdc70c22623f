"""The network under compression on one target: exported, described, with what may be decided."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from hwloop.compress import space
from hwloop.compress.apply import in_base_precision
from hwloop.compress.export import export_onnx
from hwloop.compress.fp16_range import Kept, kept_float
from hwloop.compress.reachable import RowPlan, row_plan
from hwloop.compress.rows import network_configs, settled
from hwloop.compress.rules import SpaceRules
from hwloop.compress.sizes import described
from hwloop.compress.space import Choices, Masks
from hwloop.errors import CandidateError, UsageError
from hwloop.records import Action, Candidate, LayerConfig, Network
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.known import writing
from hwloop.runtimes.runtime import Runtime
from hwloop.task import Task

RANGE_INPUTS = 8
"""Of the search split, which is the same in every run; FP16 has a quarter of its range to spare."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The network under compression, and everything about it that no candidate changes.

    Attributes:
        dense: the trained network, in eval mode; never changed.
        example: an input of the deployed shape.
        rules: what the target can make use of, its quantization recipe among it.
        float_graph: the dense network as exported, in FP32.
        graph: the dense network as it ships, in the target's base precision: the baseline.
        isa: the target's instruction sets.
        fp16: what stays FP32 where the base precision is FP16; None where it is FP32.
    """

    task: Task
    dense: nn.Module
    example: Tensor
    network: Network
    rules: SpaceRules
    float_graph: bytes
    graph: bytes
    isa: str
    fp16: Kept | None = None

    @property
    def runtime(self) -> Runtime:
        """Whose graphs are written, for this target's instruction sets."""
        return writing(self.rules.recipe, self.isa)

    @property
    def menu(self) -> tuple[Action, ...]:
        return space.menu(self.rules)

    @property
    def masks(self) -> Masks:
        """For each group, which actions of the menu are legal."""
        return space.masks(self.network, self.rules)

    @property
    def dense_candidate(self) -> Candidate:
        return space.dense_candidate(self.network)

    def candidate(self, choices: Choices) -> Candidate:
        """Choices that come to the same network give one candidate."""
        return settled(self.network, space.candidate(choices, self.rules).actions)

    def choices(self, candidate: Candidate) -> Choices:
        return space.choices_of(candidate, self.rules)

    def uniform(self, action: Action) -> Candidate:
        """One action for all groups; see :func:`hwloop.compress.space.uniform`."""
        return space.uniform(self.network, action, self.rules)

    def shallow(self, action: Action, *, every: int) -> Candidate:
        """With residual blocks left out; see :func:`hwloop.compress.space.shallow`."""
        return space.shallow(self.network, action, self.rules, every=every)

    @property
    def plan(self) -> RowPlan:
        """Which rows are measured; all that any candidate can cost follow from them."""
        return row_plan(self.network, self.rules)

    def reachable(self) -> tuple[LayerConfig, ...]:
        """Every row that is to be measured."""
        return self.plan.measured

    def model(self, candidate: Candidate, graph: bytes) -> OnnxModel:
        return OnnxModel(graph, network_configs(self.network, candidate, self.rules))

    def macs(self, candidate: Candidate) -> int:
        configs = network_configs(self.network, candidate, self.rules)
        return sum(config.macs for config in configs)


def dense_graph(module: nn.Module, example: Tensor, *, name: str) -> bytes:
    """The dense network as an FP32 graph. Raises UsageError where it cannot be exported."""
    try:
        return export_onnx(module, example)
    except CandidateError as error:
        raise UsageError(
            f"{name} cannot be exported to ONNX: {error}", "change that layer's forward"
        ) from error


def subject(
    task: Task,
    module: nn.Module,
    rules: SpaceRules,
    *,
    isa: str,
    name: str,
    graph: bytes | None = None,
    fp16: Kept | None = None,
) -> Subject:
    """Export and describe the dense network for one target.

    Args:
        rules: of the target, resolved for its instruction sets.
        isa: the target's instruction sets, ``+``-separated.
        graph: the network as :func:`dense_graph` gives it, where that was done already.
        fp16: what was decided for the network before, where it ships in FP16.

    Raises:
        UsageError: the network cannot be exported or traced, or there is nothing to decide.
    """
    example = task.example()
    float_graph = dense_graph(module, example, name=name) if graph is None else graph
    try:
        if rules.base_precision != "fp16":
            fp16 = None
        elif fp16 is None:
            fp16 = _decided_fp16(task, example, float_graph)
        if fp16 is not None:
            rules = replace(rules, kept_float=fp16.operators)
        graph = in_base_precision(float_graph, rules)
    except CandidateError as error:
        raise UsageError(f"{name} cannot be converted: {error}", "--target cpu") from error
    return Subject(
        task=task,
        dense=module,
        example=example,
        network=described(module, example, float_graph, name=name, rules=rules),
        rules=rules,
        float_graph=float_graph,
        graph=graph,
        isa=isa,
        fp16=fp16,
    )


def _decided_fp16(task: Task, example: Tensor, graph: bytes) -> Kept:
    split = task.search()
    inputs, _ = split.batch(range(min(RANGE_INPUTS, len(split))))
    return kept_float(graph, example, inputs.numpy().astype(np.float32))


def check_has_choices(found: Subject) -> None:
    """Refuse a network in which nothing can be decided on this target.

    Raises:
        UsageError: every group has one legal action, to be left alone.
    """
    if any(sum(mask) > 1 for mask in found.masks):
        return
    rules = found.rules
    refused = f"; it builds no INT8 {', '.join(rules.refused_kinds)}" if rules.refused_kinds else ""
    raise UsageError(
        f"nothing in {found.network.name} can be compressed on this target: all "
        f"{len(found.network.groups)} groups are too thin or fixed (widths are multiples of "
        f"{rules.align}, actions {', '.join(rules.kinds)}{refused})",
        "take a wider network, or allow more in the profile's [space]",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Built:
    """A compressed, recovered, exported and checked candidate."""

    candidate: Candidate
    module: nn.Module
    model: OnnxModel
