"""TensorRT on the GPU of the machine that the worker runs on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from hwloop.device import (
    harness,
    jetson,
    state,
    trt_audit,
    trt_cache,
    trt_limits,
    trt_timing,
    trtexec,
)
from hwloop.device.cuda import CudaBackend
from hwloop.device.cuda_backends import open_backend
from hwloop.device.runtime import CAPABILITIES, Model, Runtime
from hwloop.device.trt_import import check_version, import_tensorrt
from hwloop.device.trt_plans import Plan, Plans
from hwloop.device.trt_run import OpenEngine
from hwloop.device.trt_sampling import Sampling

MEANING = "computeMs"
BURST_MS = 20.0


class TrtRuntime(Runtime):
    """Builds engines in a process of their own, runs them, and times one against another.

    Between two verbs nothing of CUDA or TensorRT is held but the primary context, so whatever a
    verb opens is freed before that context is left.

    Args:
        settings: optimization_level (3), avg_timing_iterations (8), workspace_mib (an eighth of
            the memory, at most 1024), tactic_dram_mib (three quarters of what is free), cuda
            (auto, cuda-bindings, cudart, pycuda), cuda_graph (true), tf32
            (false), build_timeout_s (600).
        trt, cuda, clock: the module, the backend and the host's clock in seconds, where they are
            not those of this machine.

    Raises:
        NoTensorRT: it is absent or too old.
        CudaError: there is no GPU, or no Python package to reach it.
    """

    name = package = "tensorrt"
    on_gpu = True
    capabilities = CAPABILITIES

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        trt: Any = None,
        cuda: CudaBackend | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._settings = settings
        self._trt = import_tensorrt() if trt is None else trt
        self._version = str(self._trt.__version__)
        check_version(self._version)
        wants_graph = bool(settings.get("cuda_graph", True))
        choice = str(settings.get("cuda", "auto"))
        self._cuda = open_backend(choice, graph=wants_graph) if cuda is None else cuda
        self._use_graph = wants_graph and self._cuda.can_graph
        with self._cuda.current():
            self._device = self._cuda.properties()
        self._sampling = Sampling(
            trt=self._trt, cuda=self._cuda, use_graph=self._use_graph, clock=clock
        )
        self._limits = trt_limits.limits(
            settings,
            memory_mib=self._device.memory_bytes >> 20,
            integrated=self._device.integrated,
        )
        cache = trt_cache.cache_path(self._version, self._device.name, self._timing_conditions())
        self._plans = Plans(settings, self._limits, module=self._trt.__name__, timing_cache=cache)

    def fingerprint(self) -> dict[str, Any]:
        found, settings = self._device, self._settings
        return {
            "device": found.name,
            "runtime": self.name,
            "runtime_version": self._version,
            "settings": [
                ["compute_capability", found.compute_capability],
                ["sm_count", str(found.sm_count)],
                ["driver_cuda", found.driver_version],
                ["cuda", self._cuda.name],
                ["cuda_graph", str(self._use_graph).lower()],
                ["optimization_level", str(settings.get("optimization_level", 3))],
                ["avg_timing_iterations", str(settings.get("avg_timing_iterations", 8))],
                ["workspace_mib", str(self._limits["workspace_mib"])],
                ["tf32", str(bool(settings.get("tf32", False))).lower()],
                ["figure", MEANING],
                ["harness", f"{harness.VERSION}.{trt_timing.VERSION}"],
                *state.fingerprint_settings(),
            ],
        }

    def fixed(self) -> dict[str, Any]:
        """Settings that came from the machine's state, for every later worker of a session."""
        return dict(self._limits)

    def lost(self) -> str | None:
        """Why this process cannot use the GPU any more, or None; asked after a failure.

        An illegal address or a failed launch makes every later call of CUDA fail in this process.
        """
        try:
            with self._cuda.current():
                stream = self._cuda.new_stream()
                self._cuda.synchronize(stream)
                self._cuda.free_stream(stream)
        except Exception as error:  # pycuda's own exceptions have no common class
            if "out of memory" in str(error).lower():  # a full GPU is no broken one
                return None
            return f"this process can no longer use the GPU: {error}"
        return None

    def build(self, model: bytes, hints: dict[str, Any]) -> Plan:
        """Build, or find the plan that was built before for the same graph and hints.

        Raises:
            BuildFailed: with the builder's reason.
        """
        return self._plans.of(model, hints)

    def compare(
        self,
        candidate: Model,
        reference: Model,
        protocol: dict[str, Any],
    ) -> dict[str, Any]:
        """Time a candidate against a reference, both given as (ONNX bytes, hints).

        Returns:
            What :func:`hwloop.device.harness.compare` returns; meaning: computeMs, without copies
            to and from the GPU; cuda_graph: whether both were replayed from graphs, else
            graph_refused says why; runs_per_graph of the candidate; host_share: the host's time of
            launching by the GPU's of running, of whichever engine has more, near 1 and above it
            the figures are the host's; launch_overhead_ms: what a plain run of the candidate costs
            more than one in a graph, None without graphs; reformats: of a candidate that is a row,
            layers that only change a layout or a type, None where that is not known.
        """
        plans = self.build(*candidate), self.build(*reference)
        row = bool(candidate[1].get("row", False))
        with self._cuda.current():
            found = self._sampling.compare(plans[0].data, plans[1].data, protocol, row=row)
        return {**found, "meaning": MEANING}

    @contextmanager
    def running(self, model: bytes, hints: dict[str, Any]) -> Iterator[Callable[[], int]]:
        """A call that runs inferences for about 20 ms, as timed, waits for their end, and says how
        many they were.
        """
        plan = self.build(model, hints)
        with self._cuda.current():
            sampler = self._sampling.sampler(plan.data)
            try:
                loops = sampler.filling(BURST_MS)
                yield lambda: sampler.run(loops)
            finally:
                sampler.close()

    def copies(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        """With copies in and out, and without: see :func:`hwloop.device.trt_probes.copies`."""
        plan = self.build(model, hints)
        with self._cuda.current():
            return self._sampling.copies(plan.data)

    def launch_floor(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        """What a launch costs at least: see :func:`hwloop.device.trt_probes.launch_floor`."""
        plan = self.build(model, hints)
        with self._cuda.current():
            return self._sampling.launch_floor(plan.data)

    def infer(self, engine: Plan, inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Run the inputs, a batch of the engine at a time; outputs are stacked."""
        with self._opened(engine) as opened:
            return opened.infer(inputs)

    def engine_file(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        """The plan with its SHA-256 and :meth:`audit`."""
        data = self.build(model, hints).data
        digest = hashlib.sha256(data).hexdigest()
        return {"data": data, "sha256": digest, "audit": self.audit(model, hints)}

    def audit(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        """What the engine really is: see :func:`hwloop.device.trt_audit.engine_audit`; build: the
        builder's record.
        """
        plan = self.build(model, hints)
        with self._opened(plan) as opened:
            found = trt_audit.engine_audit(opened.describe())
        return {**found, "build": plan.record}

    def cross_check(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        """Time the engine with trtexec: see :func:`hwloop.device.trtexec.cross_check`."""
        plan = self.build(model, hints)
        return trtexec.cross_check(plan.data, version=self._version, cuda_graph=self._use_graph)

    def layer_profile(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        """Where the time of an inference goes: see :func:`hwloop.device.trtexec.profile`."""
        return trtexec.profile(self.build(model, hints).data, version=self._version)

    def _timing_conditions(self) -> list[list[str]]:
        """What the builder's own timings depend on, beside the version and the GPU's model."""
        board = jetson.snapshot()
        locked = "unknown" if board is None else str(board["gpu"]["locked"])
        return [
            ["sm_count", str(self._device.sm_count)],
            ["locked", locked],
            *state.fingerprint_settings(),
        ]

    @contextmanager
    def _opened(self, plan: Plan) -> Iterator[OpenEngine]:
        with self._cuda.current():
            opened = OpenEngine(plan.data, trt=self._trt, cuda=self._cuda)
            try:
                yield opened
            finally:
                opened.close()
