"""What a runtime is on the machine that it runs on; one class for each.

The host asks for verbs; which of those that not every runtime has one can do stands in its
:attr:`Runtime.capabilities`, which the worker's first word names.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

Model = tuple[bytes, dict[str, Any]]
"""ONNX bytes, and what the host says of them."""

ENERGY, COPIES, LAUNCH_FLOOR = "energy", "copies", "launch_floor"
ENGINE, LAYER_PROFILE, CROSS_CHECK = "engine", "layer_profile", "cross_check"
CAPABILITIES = frozenset((ENERGY, COPIES, LAUNCH_FLOOR, ENGINE, LAYER_PROFILE, CROSS_CHECK))


class Runtime:
    """Builds engines of ONNX bytes, runs them, and times one against another.

    Attributes:
        name: as the host has it.
        package: what has to be imported for it, beside numpy; its seconds are told.
        on_gpu: it does its work there, so that the power that counts is the card's.
        capabilities: of :data:`CAPABILITIES`, what it can do besides.
        cache_bytes: of the cache beyond which weights are slow to read; None where nobody knows.
    """

    name = ""
    package = ""
    on_gpu = False
    capabilities: frozenset[str] = frozenset()
    cache_bytes: int | None = None

    def fingerprint(self) -> dict[str, Any]:
        """device, runtime, runtime_version, and settings: everything that changes a timing."""
        raise NotImplementedError

    def build(self, model: bytes, hints: dict[str, Any]) -> Any:
        """Open an engine: raises whatever the runtime says when the graph cannot run."""
        raise NotImplementedError

    def compare(
        self, candidate: Model, reference: Model, protocol: dict[str, Any]
    ) -> dict[str, Any]:
        """Time a candidate against a reference; see :func:`hwloop.device.harness.compare`."""
        raise NotImplementedError

    def infer(self, engine: Any, inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """All outputs, stacked along the first axis."""
        raise NotImplementedError

    def fixed(self) -> dict[str, Any]:
        """Settings that came from the machine's state, for every later worker of a session."""
        return {}

    def lost(self) -> str | None:
        """Why this process can do no more, or None; asked after a failure."""
        return None

    # ------------------------------------------------------------------ with a capability

    def running(
        self, model: bytes, hints: dict[str, Any]
    ) -> AbstractContextManager[Callable[[], int]]:
        """energy: a call that runs inferences for about 20 ms, and tells how many."""
        raise NotImplementedError

    def copies(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        """One copy in, run and copy out, beside the run alone."""
        raise NotImplementedError

    def launch_floor(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        """What starting an inference costs."""
        raise NotImplementedError

    def engine_file(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        """engine: the built engine as data, with sha256 and audit."""
        raise NotImplementedError

    def layer_profile(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        """The engine's layers, and the share of its time that goes into changes of layout."""
        raise NotImplementedError

    def cross_check(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        """The same engine timed by the vendor's own tool."""
        raise NotImplementedError
