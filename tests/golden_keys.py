"""Digests by which stored figures are found: of records, populations and the graphs of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from graphs import row_onnx

from hwloop.compress.methods import describe
from hwloop.compress.reachable import reachable_configs
from hwloop.compress.rows import network_configs
from hwloop.compress.rules import SpaceRules
from hwloop.compress.space import legal_actions, masks
from hwloop.findings import Fingerprint
from hwloop.measure.profile_file import load_profile
from hwloop.measure.table import population
from hwloop.parsing import digest, to_json
from hwloop.records import Action, Candidate, Group, Layer, LayerConfig, Network
from hwloop.runtimes.rowkinds import kind_of

FOUND = Fingerprint(
    device="AMD EPYC",
    runtime="onnxruntime",
    runtime_version="1.32.0",
    settings=(("threads", "1"), ("isa", "avx2+fma"), ("clock", "thread"), ("harness", "2")),
)
RECIPES = ("ort-x86", "ort-arm", "tensorrt")
TARGETS = ("cpu", "cuda", "fake", "jetson-orin", "jetson-orin-nano", "jetson-thor", "rtx")


def conv(channels: int, out: int, **other: Any) -> LayerConfig:
    shape = (1, channels, 14, 14)
    return LayerConfig(op="conv", in_shape=shape, out_channels=out, **other)


def network() -> Network:
    """Three layers in two groups: a 3x3 convolution, a depthwise one, a classifier."""
    three = {"kernel": (3, 3), "padding": (1, 1), "tail": ("bias", "relu")}
    layers = (
        Layer(name="a", config=conv(3, 32, **three), in_groups=(), out_group=0),
        Layer(name="b", config=conv(32, 32, groups=32, **three), in_groups=((0, 1),), out_group=0),
        Layer(name="c", config=conv(32, 48, tail=("bias",)), in_groups=((0, 1),), out_group=1),
        Layer(
            name="d",
            config=LayerConfig(op="linear", in_shape=(1, 48), out_channels=10, tail=("bias",)),
            in_groups=((1, 1),),
            out_group=2,
        ),
    )
    groups = tuple(
        Group(name=names[0], layers=names, channels=channels, prunable=prunable, block=names[0])
        for names, channels, prunable in (
            (("a", "b"), 32, True),
            (("c",), 48, True),
            (("d",), 10, False),
        )
    )
    return Network(name="golden", input_shape=(1, 3, 14, 14), layers=layers, groups=groups)


def candidates() -> list[Candidate]:
    keep, half = Action(), Action(kind="prune", amount=0.5)
    int8 = Action(precision="int8")
    quarter = Action(kind="prune", amount=0.25, precision="int8")
    return [
        Candidate(actions=actions)
        for actions in ((keep, keep, keep), (half, int8, keep), (quarter, half, int8))
    ]


def rules() -> dict[str, SpaceRules]:
    return {
        recipe: SpaceRules(recipe=recipe, base_precision="fp16" if recipe == "tensorrt" else "fp32")
        for recipe in RECIPES
    }


def keys() -> dict[str, Any]:
    """Everything by name; plain JSON values."""
    dense = network()
    reachable = {
        name: sorted(reachable_configs(dense, each), key=LayerConfig.key)
        for name, each in rules().items()
    }
    return {
        "fingerprint": FOUND.digest(),
        "candidates": [candidate.digest() for candidate in candidates()],
        "candidate_words": [[describe(action) for action in c.actions] for c in candidates()],
        "populations": {
            target: population(FOUND, load_profile(target).protocols.row) for target in TARGETS
        },
        "targets": {target: _asked(target) for target in TARGETS},
        "menus": {
            name: [list(mask) for mask in masks(dense, each)] for name, each in rules().items()
        },
        "unknown_layers": [
            list(legal_actions(group, SpaceRules(recipe="ort-x86"), ())) for group in dense.groups
        ],
        "rows_of_candidates": {
            name: [[row.key() for row in network_configs(dense, c, each)] for c in candidates()]
            for name, each in rules().items()
        },
        "reachable": {name: [row.key() for row in rows] for name, rows in reachable.items()},
        "row_kinds": {
            name: [kind_of(row) for row in rows if row.precision == "int8"]
            for name, rows in reachable.items()
        },
        "row_graphs": {
            name: _all_digests(rows, lambda row, name=name: row_onnx(row, name))
            for name, rows in reachable.items()
        },
    }


def _asked(target: str) -> str:
    """What of a shipped profile decides figures."""
    profile = load_profile(target)
    return digest([profile.runtime, profile.settings, profile.align, to_json(profile.protocols)])


def _all_digests(rows: tuple[LayerConfig, ...], graph: Callable[[LayerConfig], bytes]) -> str:
    found = hashlib.sha256()
    for row in rows:
        found.update(graph(row))
    return found.hexdigest()


if __name__ == "__main__":
    print(json.dumps(keys(), indent=1))
