"""A roofline in the place of a device: for tests and rehearsals, never for claims."""

from __future__ import annotations

from hwloop.runtimes.onnxruntime import X86, OnnxRuntime
from hwloop.runtimes.runtime import Runtime


class Simulated(Runtime):
    """Computes latencies from the rows of a graph, whose recipe may be any other runtime's."""

    name = "fake"
    on_cpu = False
    is_simulated = True

    @classmethod
    def recipe_for(cls, isa: str) -> str:
        return X86

    @classmethod
    def computed_by(cls, found: str) -> str:
        return OnnxRuntime.name
