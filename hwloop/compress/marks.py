"""Groups of channels, seen by marking them: for layers that torch-pruning cannot follow.

A channel that a layer writes is made NaN, and every input of another layer that is NaN then reads
it. That holds for whatever forward does in between: splits, gates of halves, shuffles. What is
read by one input together is coupled. Whether the groups can be cut, trials must say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hwloop.compress.calls import FAILURES
from hwloop.compress.coupled import PARTS, Coupling
from hwloop.compress.pruning_graph import is_depthwise, out_channels
from hwloop.compress.slices import WRITERS, Side, Slice
from hwloop.compress.standins import channels_dim, standing_in
from hwloop.compress.tracing import NORM_TYPES

MOST_RUNS = 1000
"""Of a network's forward pass, in which no layer computes: seconds."""

Place = tuple[str, Side, int]
"""Path of a module, its side, and an index there."""

Reads = Mapping[str, Mapping[int, Collection[Place]]]
"""Layer → its channels → who reads them."""


def marked(module: nn.Module, probe: Tensor, paths: Collection[str]) -> list[Coupling]:
    """The groups of these layers, where it is plain what reads them.

    Args:
        module: in eval mode; other layers stand in for some meanwhile.
        probe: (N, ...) an input of it.
        paths: of convolutions and linear layers that forward calls.
    """
    with ExitStack() as stack:
        bundles = stack.enter_context(standing_in(module))
        marks = _Marks(module, probe)
        try:
            stack.enter_context(marks.watching())
            reads = marks.reads([path for path in paths if bundles.get(_at(module, path), 1) == 1])
        except FAILURES:
            return []
        items = (_marked(module, layers, classes, bundles) for layers, classes in _classes(reads))
        return [item for item in items if item is not None]


class _Marks:
    """Runs of a network in which layers read marks, and answer as they always do."""

    def __init__(self, module: nn.Module, probe: Tensor) -> None:
        self._module = module
        self._probe = probe
        self._answers: dict[str, list[Tensor]] = {}
        self._turns: dict[str, int] = {}
        self._marking: tuple[str, Sequence[int]] = ("", ())
        self._seen: set[Place] = set()
        self._left = MOST_RUNS

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Until the block ends, layers and norms tell what they read."""
        replaced: list[tuple[Any, Any]] = []
        try:
            for path, child in self._module.named_modules():
                if isinstance(child, (*WRITERS, *NORM_TYPES)) and not _has_no_channels(child):
                    replaced.append((child, vars(child).get("forward")))
                    watch = self._mixes if _mixes(child) else self._passes
                    watched = partial(watch, path, child, child.forward)
                    child.forward = watched  # type: ignore[method-assign]
            yield
        finally:
            for child, before in replaced:
                if before is None:
                    del child.forward
                else:
                    child.forward = before

    def reads(self, paths: Sequence[str]) -> Reads:
        """Of as many layers as the runs suffice for."""
        found = {}
        self._run("", ())  # what each layer answers to no marks
        for path in paths:
            if _mixes(_at(self._module, path)) and path in self._answers:
                reads = self._reads(path, out_channels(_at(self._module, path)))
                if reads is not None:
                    found[path] = reads
        return found

    def _reads(self, path: str, width: int) -> dict[int, set[Place]] | None:
        """By the bits of a channel's number; channel by channel, where that does not tell.

        None where there are too few runs for it.
        """
        if self._left < 2 * width.bit_length():
            return None
        for parts in PARTS:
            apart = width // parts
            far = {channel: channel % apart for channel in range(apart * parts)}
            near = {channel: channel // parts for channel in far}
            for numbers in (far, near) if parts > 1 else (far,):
                found = self._by_bits(path, numbers) if apart * parts == width else None
                if found is not None:
                    return found
        if self._left < width:
            return None
        return {channel: self._run(path, [channel]) for channel in range(width)}

    def _by_bits(self, path: str, numbers: Mapping[int, int]) -> dict[int, set[Place]] | None:
        """Who reads each channel; None where somebody reads several of different numbers.

        Args:
            numbers: of the channels; those that have the same are told as read together.
        """
        bits = max(max(numbers.values()).bit_length(), 1)
        if self._left < 2 * bits:
            return None
        runs = []
        for bit in range(bits):
            ones = [channel for channel, number in numbers.items() if number >> bit & 1]
            zeros = [channel for channel, number in numbers.items() if not number >> bit & 1]
            runs.append((1 << bit, self._run(path, ones), self._run(path, zeros)))
        everything = {place for _, ones, zeros in runs for place in ones | zeros}
        if any(len(everything) != len(ones) + len(zeros) for _, ones, zeros in runs):
            return None
        read: dict[int, set[Place]] = {number: set() for number in numbers.values()}
        for place in everything:
            read[sum(value for value, ones, _ in runs if place in ones)].add(place)
        return {channel: read[number] for channel, number in numbers.items()}

    def _run(self, path: str, channels: Sequence[int]) -> set[Place]:
        """Who reads these channels of a layer."""
        self._marking, self._seen, self._turns = (path, channels), set(), {}
        self._left -= 1
        with torch.no_grad():
            self._module(self._probe.clone())
        return self._seen

    def _mixes(
        self, path: str, layer: nn.Module, own: Callable[[Tensor], Tensor], x: Tensor
    ) -> Tensor:
        """A layer that reads all channels for each that it writes."""
        turn = self._turns.get(path, 0)
        self._turns[path] = turn + 1
        self._note(path, layer, Side.INPUTS, x)
        answers = self._answers.setdefault(path, [])
        if turn == len(answers):
            answers.append(own(x))
        answer, (marked, channels) = answers[turn], self._marking
        if path != marked or not channels:
            return answer.clone()  # forward may change it in place
        return answer.index_fill(channels_dim(layer, answer), torch.tensor(channels), math.nan)

    def _passes(
        self, path: str, layer: nn.Module, own: Callable[[Tensor], Tensor], x: Tensor
    ) -> Tensor:
        """A layer or norm that treats each channel alone."""
        self._note(path, layer, Side.OUTPUTS, x)
        return x.clone() if isinstance(layer, nn.LayerNorm) else own(x)

    def _note(self, path: str, layer: nn.Module, side: Side, x: Tensor) -> None:
        read = torch.isnan(x).movedim(channels_dim(layer, x), 0).flatten(1).any(1)
        self._seen.update((path, side, index) for index in torch.nonzero(read).flatten().tolist())


def _classes(reads: Reads) -> Iterator[tuple[tuple[str, ...], list[set[Place]]]]:
    """Layers that share readers, and the channels of each that only go together, with theirs."""
    classes = _joined(
        {(path, Side.OUTPUTS, channel), *places}
        for path, channels in reads.items()
        for channel, places in channels.items()
    )
    written = [
        {path for path, side, _ in each if path in reads and side is Side.OUTPUTS}
        for each in classes
    ]
    for layers in _joined(written):
        yield (
            tuple(path for path in reads if path in layers),
            [each for each, own in zip(classes, written, strict=True) if own & layers],
        )


def _joined(sets: Iterable[Collection[Any]]) -> list[set[Any]]:
    """Those that have something in common as one."""
    found: dict[int, set[Any]] = {}
    owner: dict[Any, int] = {}
    for number, each in enumerate(sets):
        merged = set(each)
        for other in {owner[item] for item in each if item in owner}:
            merged |= found.pop(other)
        found[number] = merged
        owner.update(dict.fromkeys(merged, number))
    return list(found.values())


def _marked(
    module: nn.Module,
    layers: tuple[str, ...],
    classes: Sequence[Collection[Place]],
    bundles: Mapping[nn.Module, int],
) -> Coupling | None:
    """None where no layer has channels in all classes, nobody reads them, or one has others too."""
    places = {
        side: [_indices(each, *side) for each in classes]
        for side in sorted({place[:2] for each in classes for place in each}, key=str)
    }
    written = {path: _at(module, path) for path, side in places if side is Side.OUTPUTS}
    through = [path for path, part in written.items() if isinstance(part, WRITERS)]
    whole = all(
        sum(map(len, places[path, Side.OUTPUTS])) == out_channels(written[path]) for path in through
    )
    first = next((path for path in layers if all(places[path, Side.OUTPUTS])), None)
    if first is None or not whole or len(places) == len(through):
        return None
    bundle = math.lcm(*(bundles.get(part, 1) for part in written.values()))
    own = places[first, Side.OUTPUTS]
    if bundle > 1 and max(map(len, own)) > 1:
        return None
    order = sorted(range(len(classes)), key=lambda index: min(own[index]))
    return Coupling(
        layers=tuple(path for path, _ in module.named_modules() if path in through),
        channels=len(order),
        bundle=bundle,
        slices=tuple(
            Slice(path=path, side=side, places={i: sorted(own[j]) for i, j in enumerate(order)})
            for (path, side), own in places.items()
        ),
    )


def _indices(places: Collection[Place], path: str, side: Side) -> list[int]:
    return [index for other, own, index in places if (other, own) == (path, side)]


def _at(module: nn.Module, path: str) -> nn.Module:
    return module.get_submodule(path)


def _has_no_channels(part: nn.Module) -> bool:
    """A rectifier with one slope for everything: what passes through has nothing in common."""
    return isinstance(part, nn.PReLU) and part.num_parameters == 1


def _mixes(layer: Any) -> bool:
    return isinstance(layer, WRITERS) and not is_depthwise(layer)
