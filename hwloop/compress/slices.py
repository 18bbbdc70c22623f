"""Where a network's tensors hold the channels of a group, and taking other channels there.

What is found once in the dense network is kept as plain indices. A candidate is cut by them in one
go, whatever many groups it cuts, and nothing is followed a second time.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hwloop.errors import CandidateError
from hwloop.tasks.attention import ExplicitAttention

WRITERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
BY_CHANNEL = ("weight", "bias", "running_mean", "running_var")


class Side(enum.Enum):
    """What of a part lies by a group's channels."""

    OUTPUTS = "outputs"  # of a layer; all that a norm or a depthwise convolution has
    INPUTS = "inputs"  # of a layer
    PARAMETER = "parameter"
    HEADS = "heads"  # what an attention has once for each


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """One dimension of a part of the network, which a group's channels lie along.

    Attributes:
        path: of the module, or of the parameter.
        dim: of the parameter.
        places: channel of the group → its indices there.
    """

    path: str
    side: Side
    places: Mapping[int, Sequence[int]]
    dim: int = 0


Loss = tuple[Sequence[Slice], Collection[int]]
"""The slices of a group, and the channels of it that go."""

Index = Callable[[int], Tensor]
"""From the size of a dimension to what is taken of it, in order."""


def cut(module: nn.Module, groups: Iterable[Loss]) -> None:
    """Take channels of groups away, in place; parts that are not there any more are passed over.

    Raises:
        CandidateError: stage ``compress``: part of what goes together would stay.
    """
    gone: dict[tuple[str, Side, int], set[int]] = {}
    for slices, removed in groups:
        for each in slices:
            indices = gone.setdefault((each.path, each.side, each.dim), set())
            indices.update(_lost(each, removed))
    there = {path for path, _ in module.named_modules()}
    for path, side, dim in sorted(gone, key=_heads_first):
        indices = gone[path, side, dim]
        owner = path.rpartition(".")[0] if side is Side.PARAMETER else path
        if owner in there and indices:
            _take(module, path, side, dim, _without(indices))


def unread(module: nn.Module, groups: Iterable[Loss]) -> None:
    """Make layers read zeros for channels of groups, in place, in weights of their own."""
    for slices, removed in groups:
        for each in slices:
            if each.side is Side.INPUTS:
                part: Any = module.get_submodule(each.path)
                weight = part.weight.detach().clone()
                weight[:, _lost(each, removed)] = 0
                part.weight = nn.Parameter(weight, requires_grad=part.weight.requires_grad)


def reorder(module: nn.Module, slices: Iterable[Slice], order: Sequence[int]) -> None:
    """Bring a group's channels into another order, in place: the network answers as before.

    Args:
        order: which channel comes to each place.
    """
    for each in slices:
        _take(module, each.path, each.side, each.dim, _moved(each.places, order))


def numbered_by(slices: Iterable[Slice], path: str, count: int) -> tuple[Slice, ...]:
    """The same, where channels have the numbers that they have in one of the layers written.

    They keep theirs where that layer has several of each, not in order.

    Args:
        count: how many channels there are.
    """
    slices = tuple(slices)
    own = next(each for each in slices if each.path == path and each.side is Side.OUTPUTS)
    numbers = {channel: places[0] for channel, places in own.places.items()}
    same = all(channel == index for channel, index in numbers.items())
    if same or sorted(numbers.values()) != list(range(count)):
        return slices
    return tuple(
        replace(each, places={numbers[channel]: each.places[channel] for channel in each.places})
        for each in slices
    )


def folded(slices: Iterable[Slice], width: int) -> tuple[Slice, ...]:
    """The same, where a channel stands for all that are so far apart: one of each equal part."""

    def fold(places: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for channel in sorted(places):
            own = found.setdefault(channel % width, [])
            own += [index for index in places[channel] if index not in own]
        return found

    return tuple(replace(each, places=fold(each.places)) for each in slices)


def _lost(each: Slice, removed: Collection[int]) -> list[int]:
    return [index for channel in removed for index in each.places.get(channel, ())]


def _heads_first(place: tuple[str, Side, int]) -> bool:
    """A sort key: how many heads there are, an attention's layers say before they are cut."""
    return place[1] is not Side.HEADS


def _without(gone: Collection[int]) -> Index:
    return lambda size: torch.tensor([i for i in range(size) if i not in gone], dtype=torch.long)


def _moved(places: Mapping[int, Sequence[int]], order: Sequence[int]) -> Index:
    def index(size: int) -> Tensor:
        found = list(range(size))  # a tensor takes far longer to be written number by number
        for place, channel in enumerate(order):
            for to, source in zip(places.get(place, ()), places.get(channel, ()), strict=True):
                found[to] = source
        return torch.tensor(found, dtype=torch.long)

    return index


def _take(module: nn.Module, path: str, side: Side, dim: int, index: Index) -> None:
    if side is Side.PARAMETER:
        owner, _, name = path.rpartition(".")
        _narrow(module.get_submodule(owner), name, dim, index)
        return
    part: Any = module.get_submodule(path)
    if side is Side.HEADS:
        _take_heads(part, index)
    elif not isinstance(part, WRITERS):
        _take_norm(part, index)
    elif side is Side.OUTPUTS:
        _take_outputs(part, index)
    elif getattr(part, "groups", 1) == 1:  # else its outputs have said all
        _narrow(part, "weight", 1, index)
        setattr(part, _width(part, "in"), part.weight.shape[1])


def _take_outputs(layer: Any, index: Index) -> None:
    width, groups = len(layer.weight), getattr(layer, "groups", 1)
    if groups > 1:
        kept, bundle = index(width), width // groups
        if not _is_whole(kept, bundle):
            raise CandidateError("compress", "part of a convolution's group would be cut")
        layer.groups, layer.in_channels = len(kept) // bundle, len(kept)
    for name in ("weight", "bias"):
        _narrow(layer, name, 0, index)
    setattr(layer, _width(layer, "out"), len(layer.weight))


def _take_norm(norm: Any, index: Index) -> None:
    """Of anything that has a number for each channel; a single one is for all."""
    for name in BY_CHANNEL:
        value = getattr(norm, name, None)
        if isinstance(value, Tensor) and value.numel() > 1:
            _narrow(norm, name, value.ndim - 1, index)
    if isinstance(norm, nn.LayerNorm):
        *outer, width = norm.normalized_shape
        norm.normalized_shape = (*outer, len(index(width)))
    elif isinstance(norm, nn.GroupNorm):
        width, bundle = len(index(norm.num_channels)), norm.num_channels // norm.num_groups
        norm.num_groups = 1 if norm.num_groups == 1 else width // bundle
        norm.num_channels = width
    elif isinstance(norm, nn.PReLU):
        norm.num_parameters = norm.weight.numel()
    else:
        norm.num_features = len(index(norm.num_features))


def _take_heads(attention: ExplicitAttention, index: Index) -> None:
    size = attention.head_channels
    channels = index(attention.heads * size)
    if not _is_whole(channels, size):
        raise CandidateError("compress", "part of a head would be cut")
    attention.keep_heads([int(channel) // size for channel in channels[::size]])


def _narrow(owner: nn.Module, name: str, dim: int, index: Index) -> None:
    value = getattr(owner, name, None)
    if not isinstance(value, Tensor):
        return
    taken = value.detach().index_select(dim, index(value.shape[dim]))
    if not taken.numel():
        raise CandidateError("compress", "no channel would be left")
    is_parameter = name in owner._parameters
    new = nn.Parameter(taken, requires_grad=value.requires_grad) if is_parameter else taken
    setattr(owner, name, new)


def _is_whole(kept: Tensor, bundle: int) -> bool:
    """Whether channels are whole bundles, each in its order."""
    if len(kept) % bundle:
        return False
    rows = kept.reshape(-1, bundle)
    in_order = (rows - rows[:, :1] == torch.arange(bundle)).all()
    return bool(in_order and (rows[:, 0] % bundle == 0).all())


def _width(layer: nn.Module, side: str) -> str:
    return f"{side}_features" if isinstance(layer, nn.Linear) else f"{side}_channels"
