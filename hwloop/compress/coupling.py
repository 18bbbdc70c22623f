"""Which channels can only change together.

A group is looked for in the whole network; where torch-pruning cannot follow that, or not this
group, in ever smaller parts of it. A part that gives the same shapes as before with fewer channels
inside is no other to the rest of the network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hwloop.compress.calls import FAILURES, calls_and_outputs, sharing_copy, within
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
        _fixed(item) if set(item.layers) & set(fixed) else item
        for item in _explored(module, example).couplings
        if set(item.layers) & set(layers)
    )


def _fixed(item: Coupling) -> Coupling:
    return Coupling(layers=item.layers, channels=item.channels, bundle=item.bundle, fixed_by=OUTPUT)


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
        self._inputs: dict[str, Tensor] | None = None

    def explore(self) -> None:
        try:
            small = tracing_input(self.module, self.example)
        except UsageError as error:
            self._left.update(dict.fromkeys(self._left, error.message))
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

    def _descend(self, path: str) -> None:
        for name, child in self.module.get_submodule(path).named_children():
            inner = f"{path}.{name}" if path else name
            if not any(within(left, inner) for left in self._left):
                continue
            if self._inputs is None:
                self._inputs = _single_inputs(self.module, self.example)
            if inner in self._inputs and any(True for _ in child.children()):
                self._look(Scope(path=inner, example=self._inputs[inner]))
            self._descend(inner)

    def _look(self, scope: Scope) -> None:
        """Take the groups of one part that can change, and those that reach its end."""
        wanted = [path for path in self._left if not scope.path or within(path, scope.path)]
        try:
            groups = _groups_in(self.module, scope, wanted)
        except UsageError:
            return
        for coupled, bundle, doubt in groups:
            why = doubt
            if any(path in self._found for path in coupled):  # of another group, elsewhere
                why = UNHANDLED
            if why != UNHANDLED and (scope.path or why):
                why = "" if self._survives_a_cut(scope, coupled[0], bundle) else UNFIT
            if why:
                self._left.update({path: why for path in coupled if path in self._left})
                continue
            width = out_channels(self.module.get_submodule(coupled[0]))
            item = Coupling(layers=coupled, channels=width, bundle=bundle)
            for path in coupled:
                self._found[path] = item
                self.scopes[path] = scope
                self._left.pop(path, None)

    def _survives_a_cut(self, scope: Scope, path: str, bundle: int) -> bool:
        """Whether a group can lose half of its channels alone, and nobody else notices.

        A reshape to sizes that forward computes itself is seen only so.
        """
        trial = sharing_copy(self.module)
        count = out_channels(self.module.get_submodule(path)) // bundle
        shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        kept = in_channels_of(shuffled[: max(count // 2, 1)], bundle)
        example = scope.example if scope.path else self.example
        try:
            with torch.no_grad():
                before = self.module.get_submodule(scope.path)(example)
            with dependencies(trial, {path: scope}) as graph:
                graph.cut(path, kept)
            check_fits(trial.get_submodule(scope.path), example)
            with torch.no_grad():
                after = trial.get_submodule(scope.path)(example)
        except (CandidateError, UsageError):
            return False
        return not scope.path or shapes(before) == shapes(after)


def _groups_in(
    module: nn.Module, scope: Scope, wanted: Sequence[str]
) -> list[tuple[tuple[str, ...], int, str]]:
    """(layers, bundle, doubt) of every group of a part that a layer of ``wanted`` begins.

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
            coupled = tuple(dict.fromkeys([path, *members]))
            seen.update(coupled)
            doubt = UNHANDLED if not clean else UNFIT if reshaped else ""
            found.append((coupled, bundle, doubt))
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
        with torch.no_grad():
            module.eval()(example)
    except FAILURES as error:
        raise CandidateError("compress", f"the pruned layers do not fit: {error}") from error


def shapes(value: Any) -> Any:
    """Of all tensors in an answer."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return {key: shapes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shapes(item) for item in value]
    return None


def _single_inputs(module: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """What each part is given that is called once, with one tensor."""
    given: dict[str, list[Tensor | None]] = {}

    def enter(path: str, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        single = len(inputs) == 1 and not named and isinstance(inputs[0], Tensor)
        given.setdefault(path, []).append(inputs[0].clone() if single else None)

    handles = [
        child.register_forward_pre_hook(
            lambda child, inputs, named, path=path: enter(path, inputs, named), with_kwargs=True
        )
        for path, child in module.named_modules()
        if path and any(True for _ in child.children())
    ]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return {
        path: values[0]
        for path, values in given.items()
        if len(values) == 1 and values[0] is not None
    }
