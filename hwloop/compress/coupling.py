"""Which channels can only change together.

A group is looked for in the whole network; where torch-pruning cannot follow that, or not this
group, in ever smaller parts of it. A part that gives the same shapes as before with fewer channels
inside is no other to the rest of the network. What is left then is looked for by marks
(``marks.py``). Each group is tried (``trying.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from hwloop.compress.calls import (
    FAILURES,
    calls_and_outputs,
    sharing_copy,
    single_inputs,
    within,
)
from hwloop.compress.coupled import PARTS, Coupling
from hwloop.compress.marks import marked
from hwloop.compress.noise import noise_like
from hwloop.compress.pruning_graph import out_channels
from hwloop.compress.tracing import MOST_CALLS, Members, Scope, dependencies, tracing_input
from hwloop.compress.trying import Trials
from hwloop.errors import CandidateError, UsageError

OUTPUT = "the network's output has this width"
UNHANDLED = "what reads its channels needs all of them"
UNFIT = "the network does not run with fewer of its channels, or mixes them"
UNMET = "its channels cannot be followed"

LEAST_PATIENCE = 250_000
"""Calls for a group within a part, when several others took too many."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """What is known of one network.

    Attributes:
        shape: of the example.
        fixed: layers whose width is part of the network's interface.
    """

    shape: tuple[int, ...]
    fixed: frozenset[str]
    couplings: tuple[Coupling, ...]


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
        for item in _explored(module, example, frozenset(fixed)).couplings
        if set(item.layers) & set(layers)
    )


def cuttable(module: nn.Module, example: Tensor, paths: Collection[str]) -> dict[str, Coupling]:
    """The groups of these layers in a dense network, each with the layer's numbers of channels.

    Raises:
        CandidateError: stage ``compress``: one of them cannot be cut.
    """
    if not paths:
        return {}
    known = _explored(module, example)
    found = {}
    for path in paths:
        item = next((each for each in known.couplings if path in each.layers), None)
        if item is None or not item.slices:
            raise CandidateError("compress", f"group {path!r} cannot be cut")
        found[path] = item.numbered_by(path)
    return found


def _explored(module: nn.Module, example: Tensor, fixed: frozenset[str] | None = None) -> _Found:
    """Remembered while the network lives.

    Args:
        fixed: None where whatever was known before will do.
    """
    known = _known.get(module)
    if known is None or known.shape != tuple(example.shape) or fixed not in (None, known.fixed):
        explorer = _Explorer(module, example, fixed or frozenset())
        explorer.explore()
        known = _known[module] = _Found(
            shape=tuple(example.shape),
            fixed=explorer.fixed,
            couplings=tuple(explorer.in_order()),
        )
    return known


class _Explorer:
    """Looks for groups from the whole network down to its smallest parts."""

    def __init__(self, module: nn.Module, example: Tensor, fixed: frozenset[str]) -> None:
        self.module = module
        self.example = example
        self.fixed = fixed
        self.noise = noise_like(example)
        self._small = example
        self._patience = MOST_CALLS
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
        return single_inputs(self.module, self.noise)

    def explore(self) -> None:
        try:
            self._small = tracing_input(self.module, self.example)
        except UsageError as error:
            self._left.update(dict.fromkeys(self._left, error.message))
            if opaque := self._untraceable(""):
                self._look(Scope(path="", example=self.example, opaque=opaque))
        else:
            self._look(Scope(path="", example=self._small))
        self._descend("")
        self._look_by_marks()

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
        for name, _ in self.module.get_submodule(path).named_children():
            inner = f"{path}.{name}" if path else name
            found += self._untraceable(inner)
            if not any(within(other, inner) for other in found) and self._defies(inner):
                found.append(inner)
        return tuple(found)

    def _defies(self, path: str) -> bool:
        if path not in self.inputs:
            return False
        scope = Scope(path=path, example=self.inputs[path])
        try:
            with dependencies(sharing_copy(self.module), scope):
                return False
        except UsageError:
            return True

    def _descend(self, path: str) -> None:
        for name, _ in self.module.get_submodule(path).named_children():
            inner = f"{path}.{name}" if path else name
            if not any(within(left, inner) for left in self._left):
                continue
            if inner in self.inputs:
                self._look(Scope(path=inner, example=self.inputs[inner]))
            self._descend(inner)

    def _look(self, scope: Scope) -> None:
        """Take the groups of one part that can change."""
        wanted = [path for path in self._left if not scope.path or within(path, scope.path)]
        try:
            groups = _groups_in(self.module, scope, wanted, most_calls=self._patience)
        except UsageError:  # what could not be followed is no easier in many of its parts
            self._patience = max(self._patience // 4, LEAST_PATIENCE)
            return
        items = []
        for item in groups:
            if item.fixed_by or self._found.keys() & set(item.layers):
                self._leave(item, UNHANDLED)
            elif not scope.path and self.fixed & set(item.layers):  # never cut
                self._take(item)
            else:
                items.append(item)
        if items:
            probe = scope.example if scope.path else self.noise
            for item in self._taken(items, Trials(module=self.module, scope=scope, probe=probe)):
                self._leave(item, UNFIT)

    def _look_by_marks(self) -> None:
        """Take those of what is left that can be cut: as they are, or one of each equal part."""
        paths = [
            path
            for path in self._left
            # All that a single channel gates would count as one with it.
            if path not in self.fixed and out_channels(self.module.get_submodule(path)) > 1
        ]
        if not paths:
            return
        items = marked(sharing_copy(self.module), noise_like(self._small), paths)
        whole = Scope(path="", example=self.example)
        for parts in PARTS:
            left = [item for item in items if not self._found.keys() & set(item.layers)]
            tried = [found for item in left if (found := item.in_parts(parts)) is not None]
            if tried:
                trials = Trials(module=self.module, scope=whole, probe=self.noise, compares=True)
                self._taken(tried, trials)

    def _taken(self, items: Sequence[Coupling], trials: Trials) -> list[Coupling]:
        """Take what stands; returned is the rest."""
        standing = set(trials.surviving(items))
        for index in standing:
            self._take(items[index])
        return [item for index, item in enumerate(items) if index not in standing]

    def _take(self, item: Coupling) -> None:
        for path in item.layers:
            self._found[path] = item
            self._left.pop(path, None)

    def _leave(self, item: Coupling, why: str) -> None:
        self._left.update({path: why for path in item.layers if path in self._left})


def _groups_in(
    module: nn.Module, scope: Scope, wanted: Sequence[str], *, most_calls: int
) -> list[Coupling]:
    """Every group of a part that a layer of ``wanted`` begins.

    Raises:
        UsageError: torch-pruning cannot trace the part, or there is no end to a group.
    """
    seen: set[str] = set()
    found = []
    # A copy: what forward keeps while it is traced stays there.
    with dependencies(sharing_copy(module), scope) as graph:
        for path in wanted:
            if path in seen or not graph.knows(path):
                continue
            try:
                item = graph.members(path, most_calls=most_calls)
            except FAILURES:
                item = Members(layers=(path,), bundle=1, clean=False)
            seen.update(item.layers)
            found.append(
                Coupling(
                    layers=item.layers,
                    channels=out_channels(module.get_submodule(path)),
                    bundle=item.bundle,
                    fixed_by="" if item.clean else UNHANDLED,
                    slices=item.slices,
                )
            )
    return found
