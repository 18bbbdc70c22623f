"""The search space as data: which actions exist, and which are legal for a group on a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hwloop.records import Action, Candidate, Group, Layer, LayerConfig, Network
from hwloop.runtimes.rowkinds import kind_of

WIDTH_STEPS = 4
MIN_INT8_CHANNELS = 8
TENSORRT_INT8_CHANNELS = 16
TENSORRT_DEPTHWISE_KERNEL = 3
WEIGHTED = ("conv", "linear")


@dataclass(frozen=True, kw_only=True)
class SpaceRules:
    """What a target can make use of; read from its profile.

    Attributes:
        align: widths are multiples of this many channels.
        precisions: subset of (base, int8), in menu order.
        base_precision: what ``base`` means on this target: fp32 or fp16.
        kinds: action kinds that can pay on this target.
        recipe: quantization recipe; it decides which layers int8 can pay for, and which changes
            of precision cost time.
        kept_float: ONNX operators that stay FP32 where the base precision is FP16.
        refused_kinds: kinds of int8 rows (:func:`hwloop.runtimes.rowkinds.kind_of`) that the target
            does not build: no group that needs one may be int8.
    """

    align: int = 8
    precisions: tuple[str, ...] = ("base", "int8")
    base_precision: str = "fp32"
    kinds: tuple[str, ...] = ("keep", "prune")
    recipe: str = "ort-x86"
    kept_float: tuple[str, ...] = ()
    refused_kinds: tuple[str, ...] = ()

    def asked(self) -> dict[str, Any]:
        """What a profile asks for by field, without the two that are found out afterwards."""
        found = {**vars(self)}
        for name in ("kept_float", "refused_kinds"):
            del found[name]
        return found


def _menu() -> tuple[Action, ...]:
    actions = []
    for precision in ("base", "int8"):
        actions.append(Action(precision=precision))
        for step in range(WIDTH_STEPS - 1, 0, -1):
            amount = step / WIDTH_STEPS
            actions.append(Action(kind="prune", amount=amount, precision=precision))
    return tuple(actions)


ACTIONS: tuple[Action, ...] = _menu()
"""Every action, in a fixed order: the index is the DQN's output."""


def menu_features() -> tuple[tuple[float, float], ...]:
    """(A, 2) width and precision of each action in [-1, 1], for a search to see."""
    return tuple((2 * a.amount - 1, 1.0 if a.precision == "base" else -1.0) for a in ACTIONS)


def width(group: Group, action: Action, align: int) -> int:
    """Channels that stay: ``amount`` of the group, rounded up to a multiple of ``align``."""
    if action.kind != "prune":
        return group.channels
    wanted = group.channels * action.amount
    return min(group.channels, max(align, -(-round(wanted) // align) * align))


def legal_actions(
    group: Group, rules: SpaceRules, layers: tuple[Layer, ...] = ()
) -> tuple[bool, ...]:
    """Mask over :data:`ACTIONS`: False where the action is impossible, useless or a duplicate.

    Args:
        layers: the group's layers; without them only its width decides about int8.
    """
    seen: set[tuple[int, str]] = set()
    mask = []
    for action in ACTIONS:
        effect = (width(group, action, rules.align), action.precision)
        allowed = (
            action.kind in rules.kinds
            and action.precision in rules.precisions
            and (action.kind != "prune" or (group.prunable and effect[0] < group.channels))
            and (action.precision != "int8" or _int8_pays(group, effect[0], rules, layers))
            and effect not in seen
        )
        if allowed:
            seen.add(effect)
        mask.append(allowed)
    return tuple(mask)


def masks(network: Network, rules: SpaceRules) -> tuple[tuple[bool, ...], ...]:
    """The mask of every group; int8 is False where it needs a kind of row that is refused."""
    found = _masks(network, rules)
    if not rules.refused_kinds:
        return found
    masked = set(int8_masked(network, rules))
    return tuple(
        tuple(
            ok and not (index in masked and action.precision == "int8")
            for action, ok in zip(ACTIONS, mask, strict=True)
        )
        for index, mask in enumerate(found)
    )


def refused_kinds(network: Network, group: int, rules: SpaceRules) -> tuple[str, ...]:
    """Those of the rules' refused kinds that a group in int8 would need, at its full width."""
    actions = [ACTIONS[0]] * len(network.groups)
    actions[group] = Action(precision="int8")
    found: dict[str, None] = {}
    for layer in network.layers:
        if group == layer.out_group or group in dict(layer.in_groups):
            for config in layer_configs(network, layer, tuple(actions), rules):
                if config.precision == "int8" and kind_of(config) in rules.refused_kinds:
                    found[kind_of(config)] = None
    return tuple(found)


def int8_masked(network: Network, rules: SpaceRules) -> tuple[int, ...]:
    """Indices of the groups that could be int8 if no kind were refused."""
    int8 = [index for index, action in enumerate(ACTIONS) if action.precision == "int8"]
    return tuple(
        index
        for index, mask in enumerate(_masks(network, rules))
        if any(mask[action] for action in int8) and refused_kinds(network, index, rules)
    )


def _masks(network: Network, rules: SpaceRules) -> tuple[tuple[bool, ...], ...]:
    members: dict[int, list[Layer]] = {}
    for layer in network.layers:
        if layer.out_group is not None and layer.config.op in WEIGHTED:
            members.setdefault(layer.out_group, []).append(layer)
    return tuple(
        legal_actions(group, rules, tuple(members.get(index, ())))
        for index, group in enumerate(network.groups)
    )


def _int8_pays(group: Group, kept: int, rules: SpaceRules, layers: tuple[Layer, ...]) -> bool:
    """False where int8 kernels are known to lose, or do not exist."""
    if kept < MIN_INT8_CHANNELS:
        return False
    if rules.recipe != "tensorrt":
        return True
    return all(
        tensorrt_int8_pays(
            layer.config,
            out_channels=layer.config.out_channels * kept // group.channels,
            first=not layer.in_groups,
        )
        for layer in layers
    )


def tensorrt_int8_pays(config: LayerConfig, *, out_channels: int, first: bool) -> bool:
    """Whether TensorRT has int8 kernels for such a layer that are worth having.

    The rules are those of NVIDIA Model Optimizer 0.47 (``onnx.quantization.graph_utils``): no thin
    convolutions, no products of a matrix with a vector. Input channels are the dense network's,
    because the group that prunes them has a decision of its own.

    Args:
        first: it reads the network's input, whose few channels do not count.
    """
    least = TENSORRT_INT8_CHANNELS
    if config.op == "linear":
        rows, features = config.in_shape
        return rows > 1 and features >= least and out_channels >= least
    in_channels = config.in_shape[1] // config.groups
    if config.groups > 1 and in_channels == 1:
        return out_channels % 8 == 0 and min(config.kernel) >= TENSORRT_DEPTHWISE_KERNEL
    thin, wide = sorted((in_channels, out_channels))
    if first:
        return out_channels >= least
    square = config.kernel[0] == config.kernel[1]
    return thin >= least or (wide >= least and square and thin % 8 == 0 and wide % 8 == 0)


def uniform(masks_: tuple[tuple[bool, ...], ...], index: int) -> tuple[int, ...]:
    """One action for all groups; where it is illegal, its precision alone, or nothing."""
    precision_only = ACTIONS.index(Action(precision=ACTIONS[index].precision))
    options = (index, precision_only, 0)
    return tuple(next(option for option in options if mask[option]) for mask in masks_)


def candidate(choices: tuple[int, ...]) -> Candidate:
    return Candidate(actions=tuple(ACTIONS[index] for index in choices))


def check_candidate(value: Candidate, groups: int) -> None:
    """Raises ValueError for a candidate of another network or of another menu."""
    if len(value.actions) != groups or not set(value.actions) <= set(ACTIONS):
        raise ValueError("it is about another network")


def choices_of(value: Candidate) -> tuple[int, ...]:
    return tuple(ACTIONS.index(action) for action in value.actions)


def layer_configs(
    network: Network, layer: Layer, actions: tuple[Action, ...], rules: SpaceRules
) -> tuple[LayerConfig, ...]:
    """The rows that one layer costs under a candidate: itself and its changes of precision.

    A group's precision is that of its arithmetic and of its output tensor; a consumer of another
    precision pays a quantize or dequantize row. The network's input and output are never int8.
    TensorRT pays for quantizing alone: its int8 kernels write FP16 where nobody wants int8.
    """
    dense = layer.config
    own = _precision(actions, layer.out_group, rules)
    removed_in = 0
    sources: list[tuple[int, str]] = []
    for index, per_channel in layer.in_groups:
        group = network.groups[index]
        kept = width(group, actions[index], rules.align)
        removed_in += (group.channels - kept) * per_channel
        sources.append((kept * per_channel, _precision(actions, index, rules)))
    in_channels = dense.in_shape[1] - removed_in
    out_channels = dense.out_channels
    if layer.out_group is not None:
        group = network.groups[layer.out_group]
        kept = width(group, actions[layer.out_group], rules.align)
        out_channels = dense.out_channels * kept // group.channels
    weighted = dense.op in WEIGHTED
    if not weighted:
        own = sources[0][1] if sources else rules.base_precision
    groups = in_channels if dense.groups == dense.in_shape[1] and dense.groups > 1 else dense.groups
    rows = [
        _replace(dense, in_channels=in_channels, out_channels=out_channels, groups=groups, own=own)
    ]
    if weighted:
        rest = dense.in_shape[2:]
        casts = sources or [(in_channels, rules.base_precision)]
        for channels, precision in casts:
            quantizes = own == "int8" and precision != "int8"
            dequantizes = precision == "int8" and own != "int8" and rules.recipe != "tensorrt"
            if quantizes or dequantizes:
                shape = (dense.in_shape[0], channels, *rest)
                rows.append(_cast(shape, precision, own))
    return tuple(rows)


def network_configs(
    network: Network, value: Candidate, rules: SpaceRules
) -> tuple[LayerConfig, ...]:
    """Every row that a candidate costs, in forward order."""
    rows: list[LayerConfig] = []
    for layer in network.layers:
        rows.extend(layer_configs(network, layer, value.actions, rules))
    return tuple(rows)


def reachable_configs(network: Network, rules: SpaceRules) -> tuple[LayerConfig, ...]:
    """Every distinct row that any candidate can cost, in forward order."""
    found: dict[LayerConfig, None] = {}
    legal = masks(network, rules)
    keep = tuple(ACTIONS[0] for _ in network.groups)
    for layer in network.layers:
        involved = sorted({index for index, _ in layer.in_groups} | _own_group(layer))
        for actions in _combinations(keep, involved, legal):
            found.update(dict.fromkeys(layer_configs(network, layer, actions, rules)))
    return tuple(found)


def _own_group(layer: Layer) -> set[int]:
    return set() if layer.out_group is None else {layer.out_group}


def _combinations(
    keep: tuple[Action, ...], involved: list[int], legal: tuple[tuple[bool, ...], ...]
) -> list[tuple[Action, ...]]:
    variants = [keep]
    for index in involved:
        options = [action for action, ok in zip(ACTIONS, legal[index], strict=True) if ok]
        variants = [
            (*actions[:index], option, *actions[index + 1 :])
            for actions in variants
            for option in options
        ]
    return variants


def _precision(actions: tuple[Action, ...], group: int | None, rules: SpaceRules) -> str:
    if group is None or actions[group].precision == "base":
        return rules.base_precision
    return actions[group].precision


def _replace(
    dense: LayerConfig, *, in_channels: int, out_channels: int, groups: int, own: str
) -> LayerConfig:
    return LayerConfig(
        op=dense.op,
        in_shape=(dense.in_shape[0], in_channels, *dense.in_shape[2:]),
        out_channels=out_channels if dense.op in ("conv", "linear") else in_channels,
        kernel=dense.kernel,
        stride=dense.stride,
        padding=dense.padding,
        groups=groups,
        precision_in=own,
        precision=own,
        precision_out=own,
        sparsity=dense.sparsity,
        rank=dense.rank,
        tail=dense.tail,
    )


def _cast(shape: tuple[int, ...], source: str, wanted: str) -> LayerConfig:
    return LayerConfig(
        op="quantize" if wanted == "int8" else "dequantize",
        in_shape=shape,
        out_channels=shape[1],
        precision_in=source,
        precision=wanted,
        precision_out=wanted,
    )
