"""Which channels can only change together.

A group is looked for in the whole network; where torch-pruning cannot follow that, or not this
group, in ever smaller parts of it. A part that gives the same shapes as before with fewer channels
inside is no other to the rest of the network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hwloop.compress.calls import (
    FAILURES,
    calls_and_outputs,
    shapes,
    sharing_copy,
    single_inputs,
    within,
)
from hwloop.compress.tracing import Scope, dependencies, out_channels, tracing_input
from hwloop.errors import CandidateError, UsageError

OUTPUT = "the network's output has this width"
UNHANDLED = "what reads its channels needs all of them"
UNFIT = "without half of its channels the network does not run, or answers in another shape"
UNMET = "a function uses its weights"


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """Layers whose output channels can only change together.

    Attributes:
        layers: paths of the convolutions and linear layers.
        channels: output channels of the first.
        bundle: channels that can only go together, side by side: a head, say.
        fixed_by: in words, why the width cannot change; empty where it can.
    """

    layers: tuple[str, ...]
    channels: int
    bundle: int = 1
    fixed_by: str = ""

    @property
    def prunable(self) -> bool:
        return not self.fixed_by


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """What is known of one network, whatever of it is part of an interface."""

    shape: tuple[int, ...]
    couplings: tuple[Coupling, ...]
    scopes: Mapping[str, Scope]


_known: WeakKeyDictionary[nn.Module, _Found] = WeakKeyDictionary()


def couplings(
    module: nn.Module, example: Tensor, *, layers: Collection[str], fixed: Collection[str]
) -> tuple[Coupling, ...]:
    """Each of ``layers`` in exactly one coupling; alone, and fixed, where nothing is known of it.

    Args:
        layers: paths of the layers that forward uses (training-only branches are none of them).
        fixed: layers whose width is part of the network's interface.
    """
    return tuple(
        replace(item, fixed_by=OUTPUT) if set(item.layers) & set(fixed) else item
        for item in _explored(module, example).couplings
        if set(item.layers) & set(layers)
    )


def scopes_of(module: nn.Module, example: Tensor, paths: Collection[str]) -> dict[str, Scope]:
    """Where in a dense network the groups of these layers are looked for.

    Raises:
        CandidateError: stage ``compress``: one of them cannot be cut.
    """
    found = _explored(module, example).scopes
    lacking = [path for path in paths if path not in found]
    if lacking:
        raise CandidateError("compress", f"group {lacking[0]!r} cannot be cut")
    return {path: found[path] for path in paths}


def _explored(module: nn.Module, example: Tensor) -> _Found:
    """Remembered while the network lives."""
    known = _known.get(module)
    if known is None or known.shape != tuple(example.shape):
        explorer = _Explorer(module, example)
        explorer.explore()
        known = _known[module] = _Found(
            shape=tuple(example.shape),
            couplings=tuple(explorer.in_order()),
            scopes=explorer.scopes,
        )
    return known


class _Explorer:
    """Looks for groups from the whole network down to its smallest parts."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        self.module = module
        self.example = example
        self.scopes: dict[str, Scope] = {}
        self._found: dict[str, Coupling] = {}
        try:
            called = set(calls_and_outputs(module, example)[0])
        except FAILURES as error:
            raise UsageError(
                f"the network cannot be run: {type(error).__name__}: {error}",
                "forward must take one tensor",
            ) from error
        self._left = {path: UNMET for path, _ in module.named_modules() if path in called}

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Of its parts."""
        return single_inputs(self.module, self.example)

    def explore(self) -> None:
        try:
            small = tracing_input(self.module, self.example)
        except UsageError as error:
            self._left.update(dict.fromkeys(self._left, error.message))
            if opaque := self._untraceable(""):
                self._look(Scope(path="", example=self.example, opaque=opaque))
        else:
            self._look(Scope(path="", example=small))
        self._descend("")

    def in_order(self) -> Iterator[Coupling]:
        """Every coupling, by its first layer in the order of modules."""
        done: set[str] = set()
        for path, child in self.module.named_modules():
            if path in self._left:
                why = self._left[path]
                yield Coupling(layers=(path,), channels=out_channels(child), fixed_by=why)
            elif path in self._found and path not in done:
                done.update(self._found[path].layers)
                yield self._found[path]

    def _untraceable(self, path: str) -> tuple[str, ...]:
        """The smallest parts of a part that torch-pruning cannot follow."""
        found: list[str] = []
        for name, child in self.module.get_submodule(path).named_children():
            inner = f"{path}.{name}" if path else name
            if any(True for _ in child.children()):
                found += self._untraceable(inner)
                if not any(within(other, inner) for other in found) and self._defies(inner):
                    found.append(inner)
        return tuple(found)

    def _defies(self, path: str) -> bool:
        if path not in self.inputs:
            return False
        try:
            with dependencies(self.module, {"": Scope(path=path, example=self.inputs[path])}):
                return False
        except UsageError:
            return True

    def _descend(self, path: str) -> None:
        for name, child in self.module.get_submodule(path).named_children():
            inner = f"{path}.{name}" if path else name
            if not any(within(left, inner) for left in self._left):
                continue
            if inner in self.inputs and any(True for _ in child.children()):
                self._look(Scope(path=inner, example=self.inputs[inner]))
            self._descend(inner)

    def _look(self, scope: Scope) -> None:
        """Take the groups of one part that can change."""
        wanted = [path for path in self._left if not scope.path or within(path, scope.path)]
        try:
            groups = _groups_in(self.module, scope, wanted)
        except UsageError:
            return
        elsewhere = self._found.keys()
        sure, doubtful = [], []
        for item in groups:
            if item.fixed_by == UNHANDLED or elsewhere & set(item.layers):
                self._leave(item, UNHANDLED)
            elif item.fixed_by or scope.path or scope.opaque:
                doubtful.append(item)
            else:
                sure.append(item)
        surviving = self._surviving(scope, doubtful)
        for item in doubtful:
            if item not in surviving:
                self._leave(item, UNFIT)
        for item in (*sure, *surviving):
            for path in item.layers:
                self._found[path] = replace(item, fixed_by="")
                self.scopes[path] = scope
                self._left.pop(path, None)

    def _leave(self, item: Coupling, why: str) -> None:
        self._left.update({path: why for path in item.layers if path in self._left})

    def _surviving(self, scope: Scope, items: Sequence[Coupling]) -> list[Coupling]:
        """Those that can be cut; all are tried together, and halves of them where that fails."""
        if not items:
            return []
        if self._survive(scope, items):
            return list(items)
        middle = len(items) // 2
        if not middle:
            return []
        return [*self._surviving(scope, items[:middle]), *self._surviving(scope, items[middle:])]

    def _survive(self, scope: Scope, items: Sequence[Coupling]) -> bool:
        """Whether groups can lose channels, each another share of them, and nobody else notices.

        A reshape to sizes that forward computes itself is seen only so.
        """
        trial, generator = sharing_copy(self.module), torch.Generator().manual_seed(0)
        example = scope.example if scope.path else self.example
        try:
            before = _shape_of(self.module.get_submodule(scope.path), example)
            with dependencies(trial, {item.layers[0]: scope for item in items}) as graph:
                for item in items:
                    count = item.channels // item.bundle
                    shuffled = torch.randperm(count, generator=generator).tolist()
                    share = (
                        0.5
                        if len(items) == 1
                        else 0.3 + 0.4 * float(torch.rand(1, generator=generator))
                    )
                    kept = shuffled[: max(round(count * share), 1)]
                    graph.cut(item.layers[0], in_channels_of(kept, item.bundle))
            after = _shape_of(trial.get_submodule(scope.path), example)
            return not scope.path or before == after
        except (CandidateError, UsageError, *FAILURES):
            return False


def _groups_in(module: nn.Module, scope: Scope, wanted: Sequence[str]) -> list[Coupling]:
    """Every group of a part that a layer of ``wanted`` begins; with its doubt, where there is one.

    Raises:
        UsageError: torch-pruning cannot trace the part.
    """
    seen: set[str] = set()
    found = []
    with dependencies(module, dict.fromkeys(wanted, scope)) as graph:
        for path in wanted:
            if path in seen or not graph.knows(path):
                continue
            try:
                members, clean, reshaped = graph.members(path)
                bundle = graph.bundle(path)
            except FAILURES:
                members, clean, reshaped, bundle = [], False, False, 1
            layers = tuple(dict.fromkeys([path, *members]))
            seen.update(layers)
            found.append(
                Coupling(
                    layers=layers,
                    channels=out_channels(module.get_submodule(path)),
                    bundle=bundle,
                    fixed_by=UNHANDLED if not clean else UNFIT if reshaped else "",
                )
            )
    return found


def in_channels_of(bundles: Sequence[int], size: int) -> list[int]:
    """The channels of numbered bundles."""
    return [size * index + offset for index in bundles for offset in range(size)]


def check_fits(module: nn.Module, example: Tensor) -> None:
    """Dependencies that torch-pruning misses (a flattened concatenation, say) show here.

    Raises:
        CandidateError: stage ``compress``: forward fails.
    """
    try:
        _shape_of(module, example)
    except FAILURES as error:
        raise CandidateError("compress", f"the pruned layers do not fit: {error}") from error


def _shape_of(module: nn.Module, example: Tensor) -> Any:
    with torch.no_grad():
        return shapes(module.eval()(example))
