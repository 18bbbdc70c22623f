"""ONNX Runtime on this machine's CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime

from hwloop.device import SettingsRefused, contention, harness, state

INPUT_SEED = 7
BURST_S = 0.02


class OrtRuntime:
    """Builds sessions from ONNX bytes, runs them, and times one against another.

    Args:
        settings: ``threads``: intra-op threads, pinned to as many cores while timing.

    Raises:
        SettingsRefused: more threads than cores: they would take turns, and time themselves so.
    """

    name = "onnxruntime"

    def __init__(self, settings: dict[str, Any]) -> None:
        self.threads = int(settings.get("threads", 1))
        cores = len(state.usable_cores())
        if self.threads > cores:
            raise SettingsRefused(
                f"settings.threads is {self.threads}, only {cores} cores can be used there"
            )
        fine = self.threads == 1 and contention.thread_clock_is_fine()
        self.clock = "thread" if fine else "wall"

    def fingerprint(self) -> dict[str, Any]:
        return {
            "device": state.cpu_model(),
            "runtime": self.name,
            "runtime_version": str(onnxruntime.__version__),
            "settings": [
                ["threads", str(self.threads)],
                ["isa", state.isa()],
                ["governor", state.governor()],
                ["clock", self.clock],
                ["harness", str(harness.VERSION)],
            ],
        }

    def build(self, model: bytes, hints: dict[str, Any]) -> Any:
        """Open a session: raises whatever ONNX Runtime says when the graph cannot run."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # Pruned and quantized networks produce denormals, which run a hundred times slower.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def compare(
        self,
        candidate: tuple[bytes, dict[str, Any]],
        reference: tuple[bytes, dict[str, Any]],
        protocol: dict[str, Any],
    ) -> dict[str, Any]:
        """Time a candidate against a reference, both given as (ONNX bytes, hints)."""
        interrupted: tuple[list[list[bool]], ...] = ([], [])

        def opened(side: int, model: tuple[bytes, dict[str, Any]]) -> harness.HostSampler:
            run = bound_run(self.build(*model))
            if self.clock == "wall":
                return harness.HostSampler(run, time.perf_counter)
            sampler = contention.ThreadSampler(run)
            interrupted[side].append(sampler.interrupted)
            return sampler

        with self._pinned() as cores:
            others = contention.Contention(cores)
            found = harness.compare(
                lambda: opened(0, candidate), lambda: opened(1, reference), protocol
            )
            shares = others.shares()
        by_side = [float(np.mean(np.concatenate(side))) for side in interrupted if side]
        share = max(by_side, default=None)
        return {**found, "clock": self.clock, "interrupted_share": share, **shares}

    @contextmanager
    def running(self, model: bytes, hints: dict[str, Any]) -> Iterator[Callable[[], int]]:
        """A call that runs inferences, as timed, for about 20 ms, and tells how many."""
        with self._pinned():
            run = bound_run(self.build(model, hints))

            def burst() -> int:
                runs, ends = 0, time.perf_counter() + BURST_S
                while runs == 0 or time.perf_counter() < ends:
                    run()
                    runs += 1
                return runs

            yield burst

    def infer(self, session: Any, inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Run each input alone, as deployed; outputs are stacked along the first axis."""
        name = session.get_inputs()[0].name
        batch = session.get_inputs()[0].shape[0]
        chunks = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
        with ThreadPoolExecutor(max_workers=len(state.usable_cores())) as pool:
            results = list(pool.map(lambda chunk: session.run(None, {name: chunk}), chunks))
        return [np.concatenate(parts) for parts in zip(*results)]  # noqa: B905

    @contextmanager
    def _pinned(self) -> Iterator[list[int]]:
        """Keep this thread, and the threads that a session starts, on fixed cores: which."""
        before = os.sched_getaffinity(0)
        cores = sorted(before)[-self.threads :]
        os.sched_setaffinity(0, cores)
        try:
            yield cores
        finally:
            os.sched_setaffinity(0, before)


def bound_run(session: Any) -> Callable[[], None]:
    """A call without arguments that runs the session on seeded inputs in preallocated memory."""
    rng = np.random.default_rng(INPUT_SEED)
    for tensor in session.get_inputs():
        if not all(isinstance(size, int) for size in tensor.shape):
            raise ValueError(f"input {tensor.name!r} has no fixed shape: {tensor.shape}")
    inputs = {t.name: random_input(t.type, t.shape, rng) for t in session.get_inputs()}
    names = [tensor.name for tensor in session.get_outputs()]
    # The first run tells the shapes of the outputs, and plans the session's memory.
    outputs = dict(zip(names, session.run(names, inputs)))  # noqa: B905
    as_ort = onnxruntime.OrtValue.ortvalue_from_numpy
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, as_ort(value))
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, as_ort(value))
    run: Callable[..., None] = session.run_with_iobinding
    return lambda: run(binding)


def random_input(
    type_name: str, shape: list[int], rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Seeded data, never zeros: zeros draw less power and can take shortcuts."""
    if type_name == "tensor(float)":
        return rng.standard_normal(shape).astype(np.float32)
    if type_name == "tensor(float16)":
        return rng.standard_normal(shape).astype(np.float16)
    if type_name == "tensor(uint8)":
        return rng.integers(0, 256, shape).astype(np.uint8)
    if type_name == "tensor(int8)":
        return rng.integers(-128, 128, shape).astype(np.int8)
    raise ValueError(f"inputs of type {type_name} are not supported")
