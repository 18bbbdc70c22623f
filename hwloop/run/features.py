"""What an agent sees of a network's groups."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hwloop.records import Network


def features(network: Network) -> NDArray[np.float64]:
    """(groups, 8) static features in [-1, 1] for the agent's observation.

    Depth, channels (log2), input side (log2), layers in the group, kernel, stride, whether it may
    be pruned, and its share of the dense network's multiply-accumulates.
    """
    layers = {layer.name: layer.config for layer in network.layers}
    total = max(sum(config.macs for config in layers.values()), 1)
    rows = []
    for number, group in enumerate(network.groups):
        configs = [layers[name] for name in group.layers]
        first = configs[0]
        side = first.in_shape[-1] if len(first.in_shape) > 2 else 1
        share = sum(config.macs for config in configs) / total
        rows.append(
            [
                2 * number / max(len(network.groups) - 1, 1) - 1,
                _scaled(math.log2(group.channels), 12),
                _scaled(math.log2(side), 10),
                _scaled(len(configs), 16),
                _scaled(first.kernel[0], 7),
                _scaled(first.stride[0], 4),
                1.0 if group.prunable else -1.0,
                2 * share - 1,
            ]
        )
    return np.asarray(np.clip(rows, -1.0, 1.0), dtype=np.float64)


def _scaled(value: float, largest: float) -> float:
    return 2 * value / largest - 1
