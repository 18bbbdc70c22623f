"""Every row that a candidate can cost, and the few of them that are measured.

Channels come in sums: what a concatenation brings is as many as its parts, whichever they are. So
rows are enumerated by sums, never by combinations. Where even these are many, kinds of rows that
differ in channels alone are measured on a grid, and what lies between is interpolated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

from hwloop.compress import space
from hwloop.compress.methods import method_of
from hwloop.compress.rows import (
    WEIGHTED,
    at_size,
    casts,
    changes_nothing,
    has_own_precision,
    in_precision,
    own_precision,
    resized,
    width,
    written_channels,
    written_precision,
)
from hwloop.compress.rules import SpaceRules
from hwloop.compress.space import Masks
from hwloop.records import KEEP, Action, Layer, LayerConfig, Network

MOST_ROWS = 1000
"""Of a table; measuring them takes minutes."""

HALVES, OCTAVES, QUADRUPLES = (
    tuple(sorted({2**power for power in range(24)} | {3 * 2**power for power in range(22)})),
    tuple(2**power for power in range(24)),
    tuple(4**power for power in range(12)),
)
GRIDS = ((64, HALVES), (32, HALVES), (32, OCTAVES), (12, OCTAVES), (4, OCTAVES), (4, QUADRUPLES))
"""(kinds with more points than this lie on a grid, its widths): the first that leaves few rows."""

FEW = 3
"""Widths of which all are measured."""

Point = tuple[int, int]
"""Channels in and out; a kind that has them tied has the same number twice."""

Source = tuple[int, str]
"""Channels that a group brings, and their precision."""


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """The widths of one kind of row that are measured, in order."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowPlan:
    """What of a network's rows is measured, and how the others follow.

    Attributes:
        measured: distinct, in forward order.
        interpolated: how many more can be needed.
    """

    measured: tuple[LayerConfig, ...]
    interpolated: int
    _grids: Mapping[LayerConfig, _Axes]

    def parts(self, config: LayerConfig) -> tuple[tuple[LayerConfig, float], ...]:
        """Measured rows and their weights, which add up to a row; one alone where it is measured.

        Between neighbours on the grid it is linear in the channels in and in the channels out.
        """
        kind, point = _kind(config), _point(config)
        axes = self._grids.get(kind)
        if axes is None:
            return ((config, 1.0),)
        if _tied(kind):
            return tuple(
                (_at(kind, (value, value)), weight)
                for value, weight in _between(axes.inputs, point[0])
            )
        return tuple(
            (_at(kind, (inputs, outputs)), share * weight)
            for inputs, share in _between(axes.inputs, point[0])
            for outputs, weight in _between(axes.outputs, point[1])
        )

    def is_measured(self, config: LayerConfig) -> bool:
        return len(self.parts(config)) == 1


@lru_cache(maxsize=4)
def row_plan(network: Network, rules: SpaceRules) -> RowPlan:
    """The rows of a network on a target."""
    every = reachable_configs(network, rules)
    kinds: dict[LayerConfig, set[Point]] = {}
    for config in every:
        kinds.setdefault(_kind(config), set()).add(_point(config))
    grids: dict[LayerConfig, _Axes] = {}
    for most, marks in GRIDS:
        if _count(kinds, grids) <= MOST_ROWS:
            break
        grids = {
            kind: _axes(points, marks, unit=kind.in_shape[1] if kind.groups > 1 else 1)
            for kind, points in kinds.items()
            if len(points) > most
        }
    measured: dict[LayerConfig, None] = {}
    for config in every:
        kind = _kind(config)
        rows = _on_grid(kind, grids[kind]) if kind in grids else (config,)
        measured.update(dict.fromkeys(rows))
    further = sum(config not in measured for config in every)
    return RowPlan(measured=tuple(measured), interpolated=further, _grids=grids)


def reachable_configs(network: Network, rules: SpaceRules) -> tuple[LayerConfig, ...]:
    """Every distinct row that any candidate can cost, in forward order."""
    legal = space.masks(network, rules)
    found: dict[LayerConfig, None] = {}
    for layer in network.layers:
        found.update(dict.fromkeys(_of_layer(network, layer, legal, rules)))
    return tuple(found)


def _of_layer(
    network: Network, layer: Layer, legal: Masks, rules: SpaceRules
) -> Iterator[LayerConfig]:
    own = [KEEP] if layer.out_group is None else _options(layer.out_group, legal, rules)
    brought = {
        index: _brought(network, index, per_channel, _options(index, legal, rules), rules)
        for index, per_channel in layer.in_groups
    }
    for action in own:
        known = dict(brought)
        for index, per_channel in layer.in_groups:
            if index == layer.out_group:  # it reads its own group
                known[index] = _brought(network, index, per_channel, [action], rules)
        for dense in _sizes(network, layer, legal, rules):
            yield from _under(network, layer, dense, action, tuple(known.values()), rules)


def _sizes(
    network: Network, layer: Layer, legal: Masks, rules: SpaceRules
) -> Iterator[LayerConfig]:
    """The dense layer with each image that it can be given."""
    for action in _options(0, legal, rules) if layer.sized else [KEEP]:
        dense = at_size(network, layer, [action])
        if not changes_nothing(dense):
            yield dense


def _under(
    network: Network,
    layer: Layer,
    dense: LayerConfig,
    action: Action,
    brought: Sequence[Sequence[Source]],
    rules: SpaceRules,
) -> Iterator[LayerConfig]:
    """The rows of a layer with one action of its own group."""
    outputs = written_channels(network, layer, action, rules)
    fixed = dense.in_shape[1] - sum(
        network.groups[index].channels * per_channel for index, per_channel in layer.in_groups
    )
    own_one = has_own_precision(layer)
    told_by = 0 if own_one else 1  # how many sources decide its precision
    for first in product(*brought[:told_by]):
        own = own_precision(layer, action, first, rules)
        begun = fixed + sum(channels for channels, _ in first)
        for inputs in sorted(_sums(begun, brought[told_by:]), reverse=True):
            config = resized(dense, in_channels=inputs, out_channels=outputs)
            config = in_precision(config, own, rules)
            yield from method_of(action).rows(config, action, rules)
            if not brought or layer.reads_float:
                yield from casts(layer, config, [], rules)
    if layer.reads_float or not own_one:
        return
    shape = replace(dense, precision=own_precision(layer, action, [], rules))
    for sources in brought:
        for source in sources:
            yield from casts(layer, shape, [source], rules)


def _options(group: int, legal: Masks, rules: SpaceRules) -> list[Action]:
    pairs = zip(space.menu(rules), legal[group], strict=True)
    return [action for action, allowed in pairs if allowed]


def _brought(
    network: Network, group: int, per_channel: int, actions: Iterable[Action], rules: SpaceRules
) -> list[Source]:
    return list(
        dict.fromkeys(
            (width(network, group, action, rules) * per_channel, written_precision(action, rules))
            for action in actions
        )
    )


def _sums(begun: int, parts: Iterable[Sequence[Source]]) -> set[int]:
    sums = {begun}
    for sources in parts:
        sums = {total + channels for total in sums for channels, _ in sources}
    return sums


# ------------------------------------------------------------------------------------ grids


def _kind(config: LayerConfig) -> LayerConfig:
    """The row without its channels; of a grouped convolution, with those of one of its groups."""
    one, written = 1, 1
    if config.groups > 1:
        one, written = config.in_shape[1] // config.groups, config.out_channels // config.groups
    shape = (config.in_shape[0], one, *config.in_shape[2:])
    return replace(config, in_shape=shape, out_channels=written, groups=min(config.groups, 2))


def _tied(kind: LayerConfig) -> bool:
    """Whether the channels out of a row of this kind follow from those in."""
    return kind.op not in WEIGHTED or kind.groups > 1


def _point(config: LayerConfig) -> Point:
    inputs = config.in_shape[1]
    return (inputs, inputs) if _tied(config) else (inputs, config.out_channels)


def _at(kind: LayerConfig, point: Point) -> LayerConfig:
    """Inverse of the two."""
    inputs, outputs = point
    groups = inputs // kind.in_shape[1] if kind.groups > 1 else 1
    outputs = groups * kind.out_channels if kind.groups > 1 else outputs
    shape = (kind.in_shape[0], inputs, *kind.in_shape[2:])
    return replace(kind, in_shape=shape, out_channels=outputs, groups=groups)


def _axes(points: Iterable[Point], marks: Sequence[int], *, unit: int) -> _Axes:
    inputs, outputs = zip(*points, strict=True)
    return _Axes(inputs=_axis(inputs, marks, unit), outputs=_axis(outputs, marks, unit))


def _axis(values: Iterable[int], marks: Sequence[int], unit: int) -> tuple[int, ...]:
    """The least and the greatest, and the marks between them.

    These are the same for every layer, so that layers share their rows; of grouped convolutions
    they are the multiples of a group's width from there on.
    """
    ordered = sorted(set(values))
    if len(ordered) <= FEW:
        return tuple(ordered)
    least, greatest = ordered[0], ordered[-1]
    whole = dict.fromkeys(-(-mark // unit) * unit for mark in marks)
    return (least, *(mark for mark in whole if least < mark < greatest), greatest)


def _between(axis: Sequence[int], value: int) -> list[tuple[int, float]]:
    """The neighbours of a value and their weights."""
    index = bisect_left(axis, value)
    if index < len(axis) and axis[index] == value:
        return [(value, 1.0)]
    below, above = axis[index - 1], axis[index]
    share = (value - below) / (above - below)
    return [(below, 1 - share), (above, share)]


def _on_grid(kind: LayerConfig, axes: _Axes) -> tuple[LayerConfig, ...]:
    if _tied(kind):
        return tuple(_at(kind, (value, value)) for value in axes.inputs)
    return tuple(_at(kind, point) for point in product(axes.inputs, axes.outputs))


def _count(kinds: Mapping[LayerConfig, set[Point]], grids: Mapping[LayerConfig, _Axes]) -> int:
    return sum(
        len(_on_grid(kind, grids[kind])) if kind in grids else len(points)
        for kind, points in kinds.items()
    )
