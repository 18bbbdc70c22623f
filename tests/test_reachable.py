"""The rows of a table: which there can be, which are measured, and what lies between them."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product

import pytest
import torch
import torchvision
from wirings import WIRINGS

from hwloop.compress import reachable, space
from hwloop.compress.describe import describe
from hwloop.compress.export import export_onnx
from hwloop.compress.reachable import MOST_ROWS, reachable_configs, row_plan
from hwloop.compress.rows import layer_configs, shaping_groups
from hwloop.compress.rules import SpaceRules
from hwloop.records import KEEP, LayerConfig, Network
from hwloop.tasks.demo.network import ResNet20
from hwloop.tasks.explicit import explicit

RULES = SpaceRules(recipe="ort-x86", align=8)


def by_combinations(network: Network, rules: SpaceRules) -> set[LayerConfig]:
    """Every action of every group that shapes a layer, with every other."""
    legal, menu = space.masks(network, rules), space.menu(rules)
    found: set[LayerConfig] = set()
    for layer in network.layers:
        involved = shaping_groups(layer)
        options = [[a for a, ok in zip(menu, legal[i], strict=True) if ok] for i in involved]
        for chosen in product(*options):
            actions = [KEEP] * len(network.groups)
            for index, action in zip(involved, chosen, strict=True):
                actions[index] = action
            found.update(layer_configs(network, layer, actions, rules))
    return found


def described(module: torch.nn.Module, shape: tuple[int, ...]) -> Network:
    module, example = explicit(module.eval()), torch.zeros(shape)
    return describe(module, example, export_onnx(module, example), name="it")


FEW = [name for name in WIRINGS if name != "dense block"]
"""What has as few combinations as can be enumerated."""


@pytest.mark.parametrize("name", ["demo", *FEW])
def test_by_sums_the_rows_are_those_of_all_combinations(name: str) -> None:
    network = (
        described(ResNet20(), (1, 1, 28, 28))
        if name == "demo"
        else described(WIRINGS[name][0](), (1, 3, 16, 16))
    )
    for rules in (RULES, replace(RULES, recipe="tensorrt", base_precision="fp16")):
        found = reachable_configs(network, rules)
        assert len(set(found)) == len(found)
        assert set(found) == by_combinations(network, rules)
        plan = row_plan(network, rules)
        assert set(plan.measured) == set(found)
        assert plan.interpolated == 0


@pytest.mark.parametrize("name", ["densenet121", "googlenet"])
def test_however_much_is_concatenated_the_measured_rows_are_few(name: str) -> None:
    settings = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    network = described(
        torchvision.models.get_model(name, weights=None, **settings), (1, 3, 64, 64)
    )
    row_plan.cache_clear()
    started = time.process_time()
    plan = row_plan(network, RULES)
    assert time.process_time() - started < 5
    assert len(plan.measured) <= MOST_ROWS
    assert plan.interpolated > MOST_ROWS
    measured = set(plan.measured)
    for config in reachable_configs(network, RULES):
        parts = plan.parts(config)
        assert sum(weight for _, weight in parts) == pytest.approx(1)
        assert all(row in measured and weight > 0 for row, weight in parts)
        assert (config in measured) == (parts == ((config, 1.0),))


def conv(inputs: int, outputs: int) -> LayerConfig:
    return LayerConfig(op="conv", in_shape=(1, inputs, 8, 8), out_channels=outputs)


def depthwise(channels: int) -> LayerConfig:
    return replace(conv(channels, channels), groups=channels)


def test_between_measured_widths_a_row_is_linear_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [conv(i, o) for i in range(8, 264, 8) for o in range(8, 136, 8)]
    every += [depthwise(channels) for channels in range(8, 1032, 8)]
    monkeypatch.setattr(reachable, "reachable_configs", lambda network, rules: tuple(every))
    monkeypatch.setattr(reachable, "MOST_ROWS", 300)
    plan = row_plan.__wrapped__(None, RULES)  # type: ignore[arg-type]
    assert len(plan.measured) < 120

    def cost(config: LayerConfig) -> float:
        inputs, outputs = config.in_shape[1], config.out_channels
        return 3 * inputs + (0 if config.groups > 1 else 5 * outputs + 2 * inputs * outputs)

    for config in every:
        parts = plan.parts(config)
        assert sum(weight * cost(row) for row, weight in parts) == pytest.approx(cost(config))
    assert len(plan.parts(conv(72, 40))) == 4
    assert plan.parts(conv(64, 32)) == ((conv(64, 32), 1.0),)
