"""A network on trial: which layers with weights it runs, in order, and copies to try things on."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hwloop.errors import CandidateError

FAILURES = (
    *(RuntimeError, ValueError, TypeError, AttributeError),
    *(LookupError, ArithmeticError, AssertionError),
)
"""What a network's own code raises where it is run in another way than it knows."""

EMPTIED = (dict, OrderedDict, set)
WEIGHTED_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    nn.functional.linear,
    nn.functional.conv1d,
    nn.functional.conv2d,
    nn.functional.conv3d,
)


def weighted_calls(module: nn.Module, example: Tensor, *, count: int | None = None) -> list[str]:
    """Paths of the convolutions and linear layers, in the order in which forward calls them.

    Args:
        count: how many of them are in the exported graph, which has none whose results nobody
            uses, as those of a head for training: where there are more, such ones are left out.
    """
    found = calls_and_outputs(module, example)[0]
    if count is None or len(found) <= count:
        return found
    return _used(module, example) or found


def calls_and_outputs(module: nn.Module, example: Tensor) -> tuple[list[str], Tensor]:
    """:func:`weighted_calls`, and what the network answers in the same run.

    Layers whose weights forward gives to a function itself are called as well.
    """
    with torch.no_grad():
        made, outputs = _followed(module, example)
    return [path for path, _ in made], outputs


def _followed(module: nn.Module, example: Tensor) -> tuple[list[tuple[str, Tensor | None]], Tensor]:
    """Each call with its result where that has a gradient, in order; and what the network answers.

    Others are let go of at once: of a large image all of them together take gigabytes.
    """
    paths: dict[int, str] = {}
    calls = _Calls(paths)
    handles: list[Any] = []
    for path, child in module.named_modules():
        if isinstance(child, WEIGHTED_TYPES):
            paths.setdefault(id(child.weight), path)
            handles += [
                child.register_forward_pre_hook(lambda *unused: calls.enter()),
                child.register_forward_hook(
                    lambda child, inputs, output, path=path: calls.leave(path, output)
                ),
            ]
    try:
        with calls:
            outputs: Tensor = module(example)
    finally:
        for handle in handles:
            handle.remove()
    return calls.made, outputs


def _used(module: nn.Module, example: Tensor) -> list[str]:
    """The calls on whose results the output depends; none where that has no gradient."""
    weights = [child.weight for child in module.modules() if isinstance(child, WEIGHTED_TYPES)]
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_()
    try:
        with torch.enable_grad():
            calls, output = _followed(module, example)
            made = [result for _, result in calls if result is not None]
            if not output.requires_grad or len(made) < len(calls):
                return []
            gradients = torch.autograd.grad(output.sum(), made, allow_unused=True)
    except FAILURES:
        return []
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    used = zip(calls, gradients, strict=True)
    return [path for (path, _), gradient in used if gradient is not None]


class _Calls(TorchFunctionMode):
    """What is called, and what it gives: a layer, or a function with a layer's weight."""

    def __init__(self, paths: Mapping[int, str]) -> None:
        super().__init__()
        self.made: list[tuple[str, Tensor | None]] = []
        self._paths = paths
        self._within = 0

    def enter(self) -> None:
        self._within += 1

    def leave(self, path: str, output: Tensor) -> None:
        self._within -= 1
        self.note(path, output)

    def note(self, path: str, output: Tensor) -> None:
        self.made.append((path, output if output.requires_grad else None))

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        output = func(*args, **named)
        if func in _FUNCTIONS and not self._within:
            weight = args[1] if len(args) > 1 else named.get("weight")
            path = self._paths.get(id(weight))
            if path is not None:
                self.note(path, output)
        return output


def sharing_copy(module: nn.Module) -> nn.Module:
    """A copy with the same weights in memory: for trials that replace some and change none."""
    shared: dict[int, Any] = {id(value): value for value in module.parameters()}
    shared.update((id(value), value) for value in module.buffers())
    for child in module.modules():
        # Most that deepcopy does is to make empty dictionaries for hooks that nobody has set.
        empty = (value for value in vars(child).values() if type(value) in EMPTIED and not value)
        shared.update((id(value), type(value)()) for value in empty)
    copied: nn.Module = copy.deepcopy(module, shared)
    return copied


def within(path: str, module: str) -> bool:
    """Whether a layer is one of a module's."""
    return path.startswith(f"{module}.")


def shapes(value: Any) -> Any:
    """Of all tensors in an answer."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return {key: shapes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shapes(item) for item in value]
    return None


def single_inputs(
    module: nn.Module,
    example: Tensor,
    *,
    keep: Callable[[Tensor, Any], bool] = lambda inputs, output: True,
) -> dict[str, Tensor]:
    """What each module that has parts is given, where it is called once, with one tensor.

    Copies: they may be changed in place.

    Args:
        keep: by what it is given and what it makes of that; the others are let go of at once.
    """
    given: dict[str, list[Tensor | None]] = {}

    def enter(path: str, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        single = len(inputs) == 1 and not named and isinstance(inputs[0], Tensor)
        given.setdefault(path, []).append(inputs[0].clone() if single else None)

    def leave(path: str, output: Any) -> None:
        value = given[path][-1]
        if value is not None and not keep(value, output):
            given[path][-1] = None

    handles: list[Any] = []
    for path, child in module.named_modules():
        if path and any(True for _ in child.children()):
            handles += [
                child.register_forward_pre_hook(
                    lambda child, inputs, named, path=path: enter(path, inputs, named),
                    with_kwargs=True,
                ),
                child.register_forward_hook(
                    lambda child, inputs, output, path=path: leave(path, output)
                ),
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
