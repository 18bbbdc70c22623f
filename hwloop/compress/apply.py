"""Candidate in, compressed network out: the methods in their fixed order.

Float methods change the module (:func:`compress`); precisions change the exported graph
(:func:`deployable`), because they exist only in the file that the runtime reads.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from torch import Tensor, nn

from hwloop.compress import space
from hwloop.compress.methods.prune import prune
from hwloop.compress.model import weighted_calls, weighted_nodes
from hwloop.compress.space import SpaceRules
from hwloop.records import Candidate, Network
from hwloop.runtimes.fp16 import to_fp16
from hwloop.runtimes.quantize import quantize


def compress(
    dense: nn.Module, example: Tensor, network: Network, *, candidate: Candidate, rules: SpaceRules
) -> nn.Module:
    """A compressed copy of ``dense``, weights inherited; ``dense`` itself is not changed.

    Raises:
        CandidateError: stage ``compress``.
    """
    module = copy.deepcopy(dense)
    widths = {}
    for group, action in zip(network.groups, candidate.actions, strict=True):
        kept = space.width(group, action, rules.align)
        if kept < group.channels:
            widths[group.name] = kept
    if widths:
        prune(module, example, widths, dense=dense)
    return module.eval()


def deployable(
    module: nn.Module,
    example: Tensor,
    graph: bytes,
    *,
    network: Network,
    candidate: Candidate,
    calibration: np.ndarray[Any, Any],
    rules: SpaceRules,
    isa: str,
) -> bytes:
    """The graph that ships: the candidate's int8 groups quantized, the rest in base precision.

    Args:
        module: the compressed network.
        graph: ``module`` as exported, in FP32.
        calibration: (N, ...) real inputs.
        rules: of the target, with its recipe.
        isa: instruction sets of the target, ``+``-separated.

    Raises:
        CandidateError: stage ``compress`` or ``export``.
    """
    graph = quantized(
        module,
        example,
        graph,
        network=network,
        candidate=candidate,
        calibration=calibration,
        recipe=rules.recipe,
        isa=isa,
    )
    return in_base_precision(graph, rules)


def in_base_precision(graph: bytes, rules: SpaceRules) -> bytes:
    """An FP32 graph in what the target runs without quantization. Raises CandidateError."""
    return to_fp16(graph, rules.kept_float) if rules.base_precision == "fp16" else graph


def quantized(
    module: nn.Module,
    example: Tensor,
    graph: bytes,
    *,
    network: Network,
    candidate: Candidate,
    calibration: np.ndarray[Any, Any],
    recipe: str,
    isa: str,
) -> bytes:
    """The graph with the candidate's int8 groups quantized; unchanged when there are none."""
    int8 = {
        layer
        for group, action in zip(network.groups, candidate.actions, strict=True)
        if action.precision == "int8"
        for layer in group.layers
    }
    if not int8:
        return graph
    calls = weighted_calls(module, example)
    pairs = zip(calls, weighted_nodes(graph), strict=True)
    nodes = [node for path, node in pairs if path in int8]
    return quantize(graph, nodes, calibration=calibration, recipe=recipe, isa=isa)
