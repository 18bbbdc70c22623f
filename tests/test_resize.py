"""A smaller image within the network: what callers give it stays, and what its layers cost goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tiny import CHANNELS, CLASSES, MiniNet, MiniTask
from tiny import network as tiny_network
from torch import Tensor, nn
from torchvision.models import vision_transformer

import hwloop
from hwloop.compress import space
from hwloop.compress.apply import compress
from hwloop.compress.describe import graph_configs
from hwloop.compress.export import export_onnx
from hwloop.compress.methods.resize import SHARES
from hwloop.compress.rows import network_configs
from hwloop.compress.rules import SpaceRules
from hwloop.compress.shrinking import shrink, sides
from hwloop.compress.sizes import INPUT, described
from hwloop.errors import CandidateError
from hwloop.records import KEEP, Action, Candidate, Network
from hwloop.tasks.demo.network import ResNet20
from hwloop.tasks.explicit import explicit

RULES = SpaceRules(recipe="ort-x86", kinds=("keep", "resize", "prune"))
LESS, LEAST = (Action(kind="resize", amount=share) for share in SHARES)


def network_of(module: nn.Module, example: Tensor) -> Network:
    graph = export_onnx(module, example)
    return described(module, example, graph, name="test", rules=RULES)


def vit(side: int = 28) -> nn.Module:
    torch.manual_seed(0)
    network = vision_transformer.VisionTransformer(
        image_size=side, patch_size=4, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )
    nn.init.normal_(network.heads.head.weight)
    return explicit(network.eval())


def outputs_of(graph: bytes, image: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": image.numpy()})[0])


@pytest.mark.parametrize(
    ("shape", "share", "expected"),
    [
        ((1, 1, 28, 28), 0.86, (24, 24)),
        ((1, 1, 28, 28), 0.72, (20, 20)),
        ((1, 3, 224, 224), 0.86, (192, 192)),
        ((1, 3, 224, 224), 0.72, (160, 160)),
        ((1, 3, 64, 64), 0.86, (56, 56)),
        ((1, 3, 120, 160), 0.72, (80, 112)),
        ((1, 3, 3, 3), 0.72, (2, 2)),
    ],
)
def test_sides_are_what_strides_divide(
    shape: tuple[int, ...], share: float, expected: tuple[int, ...]
) -> None:
    assert sides(shape, share) == expected


@pytest.mark.parametrize("make", [ResNet20, vit])
@pytest.mark.parametrize("action", [LESS, LEAST])
def test_it_takes_the_same_image_and_computes_with_a_smaller_one(make: Any, action: Action) -> None:
    channels = 1 if make is ResNet20 else 3
    dense, example = make().eval(), torch.randn(1, channels, 28, 28)
    network = network_of(dense, example)
    assert network.groups[0].name == INPUT
    candidate = space.uniform(network, action, RULES)
    assert candidate.actions[0] == action
    assert set(candidate.actions[1:]) == {KEEP}
    small = compress(dense, example, network, candidate=candidate, rules=RULES)
    graph = export_onnx(small, example)
    rows = graph_configs(graph)
    assert rows == list(network_configs(network, candidate, RULES))
    assert (rows[0].op, rows[0].in_shape[2:]) == ("resize", (28, 28))
    whole = sum(layer.config.macs for layer in network.layers)
    assert sum(row.macs for row in rows) < (action.amount**2 + 0.08) * whole
    torch.testing.assert_close(outputs_of(graph, example), small(example), rtol=1e-4, atol=1e-4)


def test_nothing_costs_anything_where_the_image_keeps_its_size() -> None:
    dense, example = ResNet20().eval(), torch.randn(1, 1, 28, 28)
    network = network_of(dense, example)
    rows = network_configs(network, space.dense_candidate(network), RULES)
    assert list(rows) == graph_configs(export_onnx(dense, example))


def test_positions_between_are_what_lies_between_them() -> None:
    network = vit()
    with torch.no_grad():
        table = network.encoder.pos_embedding
        table[:, 1:] = torch.arange(7.0).repeat(7)[None, :, None]
    network.take_sides((16, 16))
    found = network.encoder.pos_embedding[0, 1:, 0].reshape(4, 4)
    assert torch.equal(found[0], found[3])
    assert (found[0].diff() > 1).all()
    assert torch.equal(network.encoder.pos_embedding[:, 0], vit().encoder.pos_embedding[:, 0])


def test_what_cannot_be_of_another_size_has_no_such_group() -> None:
    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    flat = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Flatten(), nn.Linear(16 * 26 * 26, 4))
    signal = nn.Sequential(nn.Conv1d(4, 16, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    for module, shape in ((Map(), (1, 1, 28, 28)), (flat, (1, 1, 28, 28)), (signal, (1, 4, 32))):
        network = network_of(module.eval(), torch.randn(shape))
        assert [group.sizes for group in network.groups] == [()] * len(network.groups)


def test_only_whole_patches_of_a_vit_are_sizes_of_it() -> None:
    network = vision_transformer.VisionTransformer(
        image_size=192, patch_size=64, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8
    )
    with pytest.raises(CandidateError, match=r"no image of \(160, 160\): patches have sides of 64"):
        shrink(explicit(network), torch.zeros(1, 3, 192, 192), 0.86)


class PooledNet(MiniNet):
    """It takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(CHANNELS, CLASSES)


class PooledTask(MiniTask):
    name = "pooled"

    def model(self) -> nn.Module:
        return tiny_network(PooledNet)


def test_a_search_ships_a_smaller_image_that_loads_again(tmp_path: Path) -> None:
    profile = tmp_path / "sizes.toml"
    profile.write_text(
        'description = "Sizes"\nruntime = "onnxruntime"\n[datasheet]\ngbytes_per_s = 0.05\n'
        'tmacs_per_s = {fp32 = 0.00005, fp16 = 0.00005, int8 = 0.0001}\nsource = "made up"\n'
        "[space]\nalign = 8\n"
        'precisions = ["base"]\nkinds = ["keep", "resize"]\n'
    )
    report = hwloop.optimize(
        task=PooledTask(),
        target=str(profile),
        simulate=True,
        run=tmp_path / "run",
        evaluations=2,
        loop_steps=0,
        final_steps=0,
        finalists=1,
        max_drop=None,
        min_speedup=1.01,
    )
    done = report["best"]["actions"][0]
    assert done["group"] == INPUT
    assert done["action"].startswith("image of ")
    module = hwloop.load(tmp_path / "run", task=PooledTask())
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 8, 8))).float()
    graph = (tmp_path / "run" / "best" / "model.onnx").read_bytes()
    torch.testing.assert_close(outputs_of(graph, image), module(image), rtol=1e-3, atol=1e-3)


def test_an_action_of_another_network_is_not_understood() -> None:
    plain = SpaceRules(kinds=("keep", "prune"))
    with pytest.raises(ValueError, match="another network"):
        space.check_candidate(Candidate(actions=(LESS,)), 1, space.menu(plain))
