"""Which rows of the latency table a candidate costs: arithmetic over the dense network's layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hwloop.compress.methods import method_of
from hwloop.compress.rules import SpaceRules
from hwloop.records import KEEP, Action, Candidate, Layer, LayerConfig, Network
from hwloop.runtimes.known import writing

WEIGHTED = ("conv", "linear")
"""Operators whose precision their group's action says."""


def width(network: Network, group: int, action: Action, rules: SpaceRules) -> int:
    """Channels of a group that stay under an action."""
    return method_of(action).channels(action, network.groups[group], rules)


def layer_configs(
    network: Network, layer: Layer, actions: Sequence[Action], rules: SpaceRules
) -> tuple[LayerConfig, ...]:
    """The rows that one layer costs under a candidate: itself and its changes of precision.

    A group's precision is that of its arithmetic and, but for FP8, of its output tensor; a consumer
    of another precision pays a quantize or dequantize row. The network's input and output are never
    int8.
    Where a runtime's int8 kernels write what a float layer reads, only quantizing is paid.

    Args:
        actions: one for each group of the network.
    """
    dense = at_size(network, layer, actions)
    if _is_left_out(layer, actions) or changes_nothing(dense):
        return ()
    action = KEEP if layer.out_group is None else actions[layer.out_group]
    sources = _sources(network, layer, actions, rules)
    own = own_precision(layer, action, sources, rules)
    config = _in_candidate(network, layer, dense, actions, rules)
    config = in_precision(config, own, rules)
    rows = method_of(action).rows(config, action, rules)
    return (*rows, *casts(layer, config, sources, rules))


def network_configs(
    network: Network, value: Candidate, rules: SpaceRules
) -> tuple[LayerConfig, ...]:
    """Every row that a candidate costs, in forward order."""
    rows: list[LayerConfig] = []
    for layer in network.layers:
        rows.extend(layer_configs(network, layer, value.actions, rules))
    return tuple(rows)


def shaping_groups(layer: Layer) -> list[int]:
    """The groups whose actions decide a layer's channels and precisions, in order."""
    own = set() if layer.out_group is None else {layer.out_group}
    return sorted({index for index, _ in layer.in_groups} | own)


def groups_of(layer: Layer) -> list[int]:
    """The groups whose actions decide what a layer costs, in order.

    Also whether it is there, and the size of its image.
    """
    holder = set() if layer.branch is None else {layer.branch}
    image = {0} if layer.sized else set()
    return sorted({*shaping_groups(layer), *holder, *image})


def settled(network: Network, actions: Sequence[Action]) -> Candidate:
    """The candidate; nothing is decided for groups within a block that is left out."""
    gone = {
        index
        for index, action in enumerate(actions)
        if network.groups[index].branch and method_of(action).leaves_out
    }
    if not gone:
        return Candidate(actions=tuple(actions))
    holders = {layer.name: layer.branch for layer in network.layers}
    return Candidate(
        actions=tuple(
            KEEP if index not in gone and _all_go(group.layers, holders, gone) else action
            for index, (group, action) in enumerate(zip(network.groups, actions, strict=True))
        )
    )


def _all_go(layers: Sequence[str], holders: dict[str, int | None], gone: set[int]) -> bool:
    return all(holders.get(name) in gone for name in layers)


def _is_left_out(layer: Layer, actions: Sequence[Action]) -> bool:
    """Whether its residual block goes."""
    return layer.branch is not None and method_of(actions[layer.branch]).leaves_out


def at_size(network: Network, layer: Layer, actions: Sequence[Action]) -> LayerConfig:
    """The dense layer with the image that it is given in a candidate."""
    if not layer.sized:
        return layer.config
    share = method_of(actions[0]).size(actions[0])
    return layer.config if share == 1 else layer.sized[network.groups[0].sizes.index(share)]


def changes_nothing(config: LayerConfig) -> bool:
    """Whether it is a resize to the size that an image has."""
    return config.op == "resize" and config.kernel == config.in_shape[2:]


def _in_candidate(
    network: Network,
    layer: Layer,
    dense: LayerConfig,
    actions: Sequence[Action],
    rules: SpaceRules,
) -> LayerConfig:
    """The layer with the channels that it reads and writes in a candidate."""
    in_channels = dense.in_shape[1]
    for index, per_channel in layer.in_groups:
        kept = width(network, index, actions[index], rules)
        in_channels -= (network.groups[index].channels - kept) * per_channel
    own = KEEP if layer.out_group is None else actions[layer.out_group]
    written = written_channels(network, layer, own, rules)
    return resized(dense, in_channels=in_channels, out_channels=written)


def written_channels(network: Network, layer: Layer, action: Action, rules: SpaceRules) -> int:
    """What a layer writes under an action of its own group."""
    if layer.out_group is None:
        return layer.config.out_channels
    kept = width(network, layer.out_group, action, rules)
    return layer.config.out_channels * kept // network.groups[layer.out_group].channels


def resized(dense: LayerConfig, *, in_channels: int, out_channels: int) -> LayerConfig:
    """A layer with other channels: of grouped ones, whole groups go.

    Args:
        out_channels: of a layer without weights they are those that it reads.
    """
    return replace(
        dense,
        in_shape=(dense.in_shape[0], in_channels, *dense.in_shape[2:]),
        out_channels=out_channels if dense.op in WEIGHTED else in_channels,
        groups=max(dense.groups * in_channels // dense.in_shape[1], 1),
    )


def _sources(
    network: Network, layer: Layer, actions: Sequence[Action], rules: SpaceRules
) -> list[tuple[int, str]]:
    """(channels, precision) of each group that a layer reads."""
    return [
        (
            width(network, index, actions[index], rules) * per_channel,
            written_precision(actions[index], rules),
        )
        for index, per_channel in layer.in_groups
    ]


def has_own_precision(layer: Layer) -> bool:
    """Whether it is the same whatever the layer reads; that of the others is a source's."""
    return layer.config.op in WEIGHTED or layer.is_float


def casts(
    layer: Layer, config: LayerConfig, sources: Sequence[tuple[int, str]], rules: SpaceRules
) -> list[LayerConfig]:
    """The changes of precision in front of a layer with a precision of its own.

    Args:
        config: the layer in a candidate.
        sources: (channels, precision) of each group that it reads; of none, the network's input.
    """
    if not has_own_precision(layer):
        return []
    own = config.precision
    rows = []
    floats = [(config.in_shape[1], rules.base_precision)]
    beside = layer.reads_float or config.op not in WEIGHTED
    for channels, precision in floats if layer.reads_float or not sources else sources:
        quantizes = own == "int8" and precision != "int8"
        dequantizes = precision == "int8" and own != "int8"
        if quantizes or (dequantizes and writing(rules.recipe).dequantizes):
            shape = _read_shape(config, channels)
            rows.append(_cast(shape, precision, own, beside=beside and len(shape) == 4))
    return rows


def _read_shape(config: LayerConfig, channels: int) -> tuple[int, ...]:
    if config.op == "attention":  # by its tokens
        return (config.in_shape[0] * config.in_shape[3], channels)
    return (config.in_shape[0], channels, *config.in_shape[2:])


def own_precision(
    layer: Layer, action: Action, sources: Sequence[tuple[int, str]], rules: SpaceRules
) -> str:
    """Of an operator's arithmetic: a pool's is that of what it reads first.

    Args:
        action: of the group that it writes.
        sources: (channels, precision) of each group that it reads.
    """
    if layer.config.op in WEIGHTED:
        return precision_of(action, rules)
    if layer.is_float or layer.reads_float or not sources:
        return rules.base_precision
    return sources[0][1]


def precision_of(action: Action, rules: SpaceRules) -> str:
    """Of the arithmetic of a group under an action."""
    return rules.base_precision if action.precision == "base" else action.precision


def written_precision(action: Action, rules: SpaceRules) -> str:
    """Of what a group writes under an action."""
    return _between(precision_of(action, rules), rules)


def in_precision(config: LayerConfig, own: str, rules: SpaceRules) -> LayerConfig:
    """A layer that computes in a precision."""
    ends = _between(own, rules)
    return replace(config, precision_in=ends, precision=own, precision_out=ends)


def _between(precision: str, rules: SpaceRules) -> str:
    """Of the tensors around such arithmetic: FP8 is a matter of one kernel."""
    return rules.base_precision if precision == "fp8" else precision


def _cast(shape: tuple[int, ...], source: str, wanted: str, *, beside: bool) -> LayerConfig:
    """A change of precision.

    Args:
        beside: the float is not a convolution's, whose layout may be another one.
    """
    return LayerConfig(
        op="quantize" if wanted == "int8" else "dequantize",
        in_shape=shape,
        out_channels=shape[1],
        precision_in=source,
        precision=wanted,
        precision_out=wanted,
        tail=("plain",) if beside else (),
    )
