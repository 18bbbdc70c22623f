"""TensorRT on the GPU of the machine that the worker runs on."""

from __future__ import annotations

import hashlib
import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwloop.device import harness, state, trt_audit, trt_cache, trt_child, trtexec
from hwloop.device.cuda import CudaBackend, open_backend
from hwloop.device.trt_build import DEADLINE_S, BuildRequest
from hwloop.device.trt_run import OpenEngine
from hwloop.device.trt_timing import EventSampler

OLDEST = (10, 3)
MEANING = "computeMs"
KEPT_PLAN_BYTES = 128 << 20
MAX_WORKSPACE_MIB = 1024
WORKSPACE_SHARE = 0.25
TACTIC_DRAM_SHARE = 0.75
DRAM_STEP_MIB = 512
SPARSE = "2:4"


class NoTensorRT(Exception):
    """TensorRT cannot be used here; the message says what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A built engine as bytes, and the builder's record of it."""

    data: bytes
    record: dict[str, Any]


class TrtRuntime:
    """Builds engines in a process of their own, runs them, and times one against another.

    Between two verbs nothing of CUDA or TensorRT is held but the primary context, so whatever a
    verb opens is freed before that context is left.

    Args:
        settings: optimization_level (3), avg_timing_iterations (8), workspace_mib (a quarter of
            the available memory, at most 1024), cuda (auto, pycuda, cuda-bindings), cuda_graph
            (true), tf32 (false), build_timeout_s (600).
        trt, cuda: the module and the backend, where they are not those of this machine.

    Raises:
        NoTensorRT: it is absent or too old.
        CudaError: there is no GPU, or no Python package to reach it.
    """

    name = "tensorrt"

    def __init__(
        self, settings: dict[str, Any], *, trt: Any = None, cuda: CudaBackend | None = None
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
        self._cache_path = trt_cache.cache_path(self._version, self._device.name)
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()

    def fingerprint(self) -> dict[str, Any]:
        found, settings = self._device, self._settings
        return {
            "device": found.name,
            "runtime": self.name,
            "runtime_version": self._version,
            "settings": [
                ["compute_capability", found.compute_capability],
                ["sm_count", str(found.sm_count)],
                ["driver", found.driver_version],
                ["cuda", self._cuda.name],
                ["cuda_graph", str(self._use_graph).lower()],
                ["optimization_level", str(settings.get("optimization_level", 3))],
                ["avg_timing_iterations", str(settings.get("avg_timing_iterations", 8))],
                ["workspace_mib", str(settings.get("workspace_mib", "auto"))],
                ["tf32", str(bool(settings.get("tf32", False))).lower()],
                ["figure", MEANING],
                ["harness", str(harness.VERSION)],
                *state.fingerprint_settings(),
            ],
        }

    def build(self, model: bytes, hints: dict[str, Any]) -> Plan:
        """Build, or find the plan that was built before for the same graph and hints.

        Raises:
            BuildFailed: with the builder's reason.
        """
        request = self._request(hints)
        key = (hashlib.sha256(model).digest(), request.sparse, request.precision)
        plan = self._plans.get(key)
        if plan is None:
            data, record = trt_child.build_in_child(model, request, module=self._trt.__name__)
            plan = self._plans[key] = Plan(data=data, record=record)
        self._plans.move_to_end(key)
        while len(self._plans) > 2 and self._kept_bytes() > KEPT_PLAN_BYTES:
            self._plans.popitem(last=False)
        return plan

    def compare(
        self,
        candidate: tuple[bytes, dict[str, Any]],
        reference: tuple[bytes, dict[str, Any]],
        protocol: dict[str, Any],
    ) -> dict[str, Any]:
        """Time a candidate against a reference, both given as (ONNX bytes, hints).

        Returns:
            What :func:`hwloop.device.harness.compare` returns; meaning: computeMs, without copies
            to and from the GPU; cuda_graph: whether both were replayed from a graph, else
            graph_refused says why; launch_overhead_ms: what a plain run of the candidate costs
            more than a replay, None without graph.
        """
        plans = self.build(*candidate), self.build(*reference)
        refused: list[str | None] = []

        def opener(plan: Plan) -> EventSampler:
            sampler = self._sampler(plan)
            refused.append(sampler.graph_refused)
            return sampler

        with self._cuda.current():
            result = harness.compare(lambda: opener(plans[0]), lambda: opener(plans[1]), protocol)
            overhead_ms = self._launch_overhead_ms(plans[0])
        reasons = sorted({reason for reason in refused if reason})
        return {
            **result,
            "meaning": MEANING,
            "cuda_graph": self._use_graph and not reasons,
            "graph_refused": "; ".join(reasons) or None,
            "launch_overhead_ms": overhead_ms,
        }

    @contextmanager
    def running(self, model: bytes, hints: dict[str, Any]) -> Iterator[Callable[[], None]]:
        """A call that runs one inference, as timed, and waits for its end."""
        plan = self.build(model, hints)
        with self._cuda.current():
            sampler = self._sampler(plan)

            def run() -> None:
                sampler.sample_ms(1)

            try:
                yield run
            finally:
                sampler.close()

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

    def _request(self, hints: dict[str, Any]) -> BuildRequest:
        settings = self._settings
        available_mib = available_memory_mib()
        workspace_mib = settings.get("workspace_mib", default_workspace_mib(available_mib))
        # Where the GPU shares the CPU's memory, tactics may only use what is really left; in
        # steps, so that small changes of what is free do not change which tactics fit.
        tactic_mib = int(available_mib * TACTIC_DRAM_SHARE) // DRAM_STEP_MIB * DRAM_STEP_MIB
        return BuildRequest(
            optimization_level=int(settings.get("optimization_level", 3)),
            avg_timing_iterations=int(settings.get("avg_timing_iterations", 8)),
            workspace_bytes=int(workspace_mib) << 20,
            tactic_dram_bytes=tactic_mib << 20 if tactic_mib and self._device.integrated else None,
            tf32=bool(settings.get("tf32", False)),
            sparse=any(row.get("sparsity") == SPARSE for row in hints.get("configs", ())),
            precision=hints.get("precision"),
            deadline_s=float(settings.get("build_timeout_s", DEADLINE_S)),
            timing_cache=self._cache_path,
        )

    @contextmanager
    def _opened(self, plan: Plan) -> Iterator[OpenEngine]:
        with self._cuda.current():
            opened = OpenEngine(plan.data, trt=self._trt, cuda=self._cuda)
            try:
                yield opened
            finally:
                opened.close()

    def _sampler(self, plan: Plan) -> EventSampler:
        opened = OpenEngine(plan.data, trt=self._trt, cuda=self._cuda)
        return EventSampler(opened, cuda=self._cuda, use_graph=self._use_graph)

    def _launch_overhead_ms(self, plan: Plan) -> float | None:
        if not self._use_graph:
            return None
        sampler = self._sampler(plan)
        try:
            return sampler.launch_overhead_ms()
        finally:
            sampler.close()

    def _kept_bytes(self) -> int:
        return sum(len(plan.data) for plan in self._plans.values())


def import_tensorrt() -> Any:
    """The module. Raises NoTensorRT."""
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise NoTensorRT(
            f"TensorRT cannot be imported: {error}; JetPack's belongs to the system's Python "
            "(/usr/bin/python3, or a venv made with --system-site-packages), elsewhere: "
            'python3 -m pip install "tensorrt-cu13>=10.13,<12"'
        ) from error


def check_version(version: str) -> None:
    """Raises NoTensorRT for a release without what is used here."""
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if parts < OLDEST:
        raise NoTensorRT(
            f"TensorRT {version} is too old, 10.3 is the oldest; install JetPack 6.1 or newer"
        )


def available_memory_mib() -> int:
    """What the kernel could give without swapping; CUDA's own figure ignores the page cache."""
    found = state.memory().get("available_bytes")
    return 4 * MAX_WORKSPACE_MIB if found is None else found >> 20


def default_workspace_mib(available_mib: int) -> int:
    """A power of two, so that small changes of what is free do not change which kernels fit."""
    share = max(int(available_mib * WORKSPACE_SHARE), 16)
    return min(MAX_WORKSPACE_MIB, 1 << (share.bit_length() - 1))
