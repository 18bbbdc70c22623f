"""The runtimes that there are, by name and by what they write."""

from __future__ import annotations

from hwloop.errors import UsageError, closest
from hwloop.runtimes.onnxruntime import OnnxRuntime
from hwloop.runtimes.openvino import OpenVino
from hwloop.runtimes.runtime import Runtime
from hwloop.runtimes.simulated import Simulated
from hwloop.runtimes.tensorrt import TensorRT

RUNTIMES: tuple[type[Runtime], ...] = (OnnxRuntime, OpenVino, TensorRT, Simulated)

RECIPES: tuple[str, ...] = tuple(recipe for known in RUNTIMES for recipe in known.recipes)


def named(name: str) -> type[Runtime]:
    """The runtime of a profile or a fingerprint. Raises UsageError where there is none."""
    for known in RUNTIMES:
        if known.name == name:
            return known
    names = [known.name for known in RUNTIMES]
    raise UsageError(f"unknown runtime {name!r}: {closest(name, names)}", f"one of {names}")


def writing(recipe: str, isa: str = "") -> Runtime:
    """The runtime whose graphs a recipe is about.

    Args:
        isa: the target's instruction sets, where the graph depends on them.

    Raises:
        ValueError: nobody writes it; an empty one was never resolved for a target.
    """
    for known in RUNTIMES:
        if recipe in known.recipes:
            return known(recipe, isa)
    raise ValueError(f"no runtime writes the recipe {recipe!r}")
