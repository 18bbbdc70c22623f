"""A compression method that hwloop does not ship: everything that one has to bring is in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hwloop.compress.methods.method import Method, Work
from hwloop.compress.rules import SpaceRules
from hwloop.records import Action, Group, Layer, LayerConfig


class Split(Method):
    """A k x k convolution becomes one to a few channels and a 1x1 from them, by its SVD."""

    kind = "split"

    def actions(self) -> tuple[Action, ...]:
        return tuple(Action(kind=self.kind, amount=amount) for amount in (0.5, 0.25))

    def legal(
        self, action: Action, group: Group, layers: tuple[Layer, ...], rules: SpaceRules
    ) -> bool:
        configs = [layer.config for layer in layers]
        plain = all(c.op == "conv" and c.groups == 1 and min(c.kernel) > 1 for c in configs)
        return bool(configs) and plain and min(c.in_shape[1] for c in configs) > 1

    def rows(
        self, config: LayerConfig, action: Action, rules: SpaceRules
    ) -> tuple[LayerConfig, ...]:
        rank = self.rank(config.out_channels, action)
        return (
            replace(config, out_channels=rank, tail=()),
            replace(
                config,
                in_shape=(config.in_shape[0], rank, *config.out_sides),
                kernel=(1, 1),
                stride=(1, 1),
                padding=(0, 0),
            ),
        )

    def rank(self, out_channels: int, action: Action) -> int:
        return max(1, round(out_channels * action.amount))

    def apply(self, work: Work, chosen: Mapping[Group, Action]) -> None:
        import torch
        from torch import nn

        for group, action in chosen.items():
            for path in group.layers:
                layer = work.module.get_submodule(path)
                assert isinstance(layer, nn.Conv2d)
                out, rank = layer.out_channels, self.rank(layer.out_channels, action)
                left, sizes, right = torch.linalg.svd(
                    layer.weight.detach().reshape(out, -1), full_matrices=False
                )
                first = nn.Conv2d(
                    layer.in_channels,
                    rank,
                    layer.kernel_size,  # type: ignore[arg-type]
                    layer.stride,  # type: ignore[arg-type]
                    layer.padding,  # type: ignore[arg-type]
                    bias=False,
                )
                second = nn.Conv2d(rank, out, 1, bias=layer.bias is not None)
                kept = min(rank, len(sizes))
                with torch.no_grad():
                    first.weight.zero_()
                    second.weight.zero_()
                    first.weight[:kept] = right[:kept].reshape(kept, *layer.weight.shape[1:])
                    second.weight[:, :kept, 0, 0] = left[:, :kept] * sizes[:kept]
                    if layer.bias is not None and second.bias is not None:
                        second.bias.copy_(layer.bias)
                parent, _, name = path.rpartition(".")
                setattr(work.module.get_submodule(parent), name, nn.Sequential(first, second))

    def describe(self, action: Action) -> str:
        return f"split at {action.amount:.0%} of its rank"
