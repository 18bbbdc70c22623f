"""Candidate in, compressed network out: the methods in their fixed order.

Float methods change the module (:func:`compress`); precisions change the exported graph
(:func:`deployable`), because they exist only in the file that the runtime reads.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from torch import Tensor, nn

from hwloop.compress import methods
from hwloop.compress.calls import weighted_calls
from hwloop.compress.describe import weighted_nodes
from hwloop.compress.methods.method import Work
from hwloop.compress.moments import InputMoments
from hwloop.compress.rows import settled
from hwloop.compress.rules import SpaceRules
from hwloop.records import KEEP, Candidate, Network
from hwloop.runtimes.fp16 import to_fp16
from hwloop.runtimes.runtime import Runtime


def compress(
    dense: nn.Module,
    example: Tensor,
    network: Network,
    *,
    candidate: Candidate,
    rules: SpaceRules,
    moments: InputMoments | None = None,
) -> nn.Module:
    """A compressed copy of ``dense``, weights inherited; ``dense`` itself is not changed.

    Args:
        moments: what the layers of ``dense`` are given; without, weights alone decide what goes.

    Raises:
        CandidateError: stage ``compress``.
    """
    module = copy.deepcopy(dense)
    work = Work(module=module, dense=dense, example=example, rules=rules, moments=moments)
    settled_actions = settled(network, candidate.actions).actions
    decided = list(zip(network.groups, settled_actions, strict=True))
    for method in methods.METHODS:
        chosen = {group: action for group, action in decided if action.kind == method.kind}
        if chosen:
            method.apply(work, chosen)
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
    runtime: Runtime,
) -> bytes:
    """The graph that ships: the candidate's quantized groups, the rest in base precision.

    Args:
        module: the compressed network.
        graph: ``module`` as exported, in FP32.
        calibration: (N, ...) real inputs.
        rules: of the target.
        runtime: whose graph it is; see :mod:`hwloop.runtimes.known`.

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
        runtime=runtime,
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
    runtime: Runtime,
) -> bytes:
    """The graph with the candidate's groups in INT8 and FP8; unchanged when there are none."""
    if all(action.precision == KEEP.precision for action in candidate.actions):
        return graph
    written = weighted_nodes(graph)
    calls = weighted_calls(module, example, count=len(written))
    pairs = list(zip(calls, written, strict=True))

    def nodes(precision: str) -> list[str]:
        layers = {
            layer
            for group, action in zip(network.groups, candidate.actions, strict=True)
            if action.precision == precision
            for layer in group.layers
        }
        return [node for path, node in pairs if _is_in(path, layers)]

    int8, fp8 = nodes("int8"), nodes("fp8")
    if not int8 and not fp8:  # they were all in blocks that are left out
        return graph
    return runtime.quantized(graph, int8, fp8=fp8, calibration=calibration)


def _is_in(path: str, layers: set[str]) -> bool:
    """Whether a call is of one of the layers, or of what a method made of one."""
    parts = path.split(".")
    return any(".".join(parts[:count]) in layers for count in range(1, len(parts) + 1))
