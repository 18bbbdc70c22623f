"""What runtimes on this machine's cores have in common: pinned threads, clocks and samples."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from hwloop.device import SettingsRefused, contention, harness, state
from hwloop.device.runtime import ENERGY, Model, Runtime

INPUT_SEED = 7
BURST_S = 0.02


class CpuRuntime(Runtime):
    """Runs engines on threads of this process.

    A runtime says how it opens an engine, how one is run on inputs in preallocated memory, and what
    an engine gives for inputs: :meth:`build`, :meth:`bound_run`, :meth:`batch` and :meth:`outputs`.

    Args:
        settings: ``threads``: of one inference, pinned to as many cores while timing.

    Raises:
        SettingsRefused: more threads than cores: they would take turns, and time themselves so.
    """

    version = ""
    capabilities = frozenset((ENERGY,))

    def __init__(self, settings: dict[str, Any]) -> None:
        self.threads = int(settings.get("threads", 1))
        cores = len(state.usable_cores())
        if self.threads > cores:
            raise SettingsRefused(
                f"settings.threads is {self.threads}, only {cores} cores can be used there"
            )
        # One thread is the caller's own, so its clock is that of the inference.
        fine = self.threads == 1 and contention.thread_clock_is_fine()
        self.clock = "thread" if fine else "wall"
        per_core_bytes = state.cache_bytes()
        self.cache_bytes = None if per_core_bytes is None else per_core_bytes * self.threads

    def fingerprint(self) -> dict[str, Any]:
        return {
            "device": state.cpu_model(),
            "runtime": self.name,
            "runtime_version": self.version,
            "settings": [
                ["threads", str(self.threads)],
                ["isa", state.isa()],
                ["governor", state.governor()],
                ["clock", self.clock],
                *self.further_settings(),
                ["harness", str(harness.VERSION)],
            ],
        }

    def further_settings(self) -> list[list[str]]:
        """What else of it changes a timing."""
        return []

    def bound_run(self, engine: Any) -> Callable[[], Any]:
        """A call without arguments that runs it on seeded inputs in preallocated memory."""
        raise NotImplementedError

    def batch(self, engine: Any) -> int:
        """How many inputs it takes at once."""
        raise NotImplementedError

    def outputs(self, engine: Any, inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Of one batch; called by several threads at once."""
        raise NotImplementedError

    # --------------------------------------------------------------------- what is shared

    def compare(
        self, candidate: Model, reference: Model, protocol: dict[str, Any]
    ) -> dict[str, Any]:
        """Time a candidate against a reference, both given as (ONNX bytes, hints)."""
        interrupted: tuple[list[list[bool]], ...] = ([], [])

        def opened(side: int, model: Model) -> harness.HostSampler:
            run = self.bound_run(self.build(*model))
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
            run = self.bound_run(self.build(model, hints))

            def burst() -> int:
                runs, ends = 0, time.perf_counter() + BURST_S
                while runs == 0 or time.perf_counter() < ends:
                    run()
                    runs += 1
                return runs

            yield burst

    def infer(self, engine: Any, inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Run each input alone, as deployed; outputs are stacked along the first axis."""
        size, threads = self.batch(engine), len(state.usable_cores())
        starts = range(0, len(inputs), size)

        def shared(thread: int) -> list[list[np.ndarray[Any, Any]]]:
            # A share at a time: to hand over each input costs as much as a small network takes.
            own = starts[thread * len(starts) // threads : (thread + 1) * len(starts) // threads]
            return [self.outputs(engine, inputs[start : start + size]) for start in own]

        with ThreadPoolExecutor(max_workers=threads) as pool:
            results = [found for share in pool.map(shared, range(threads)) for found in share]
        return [np.concatenate(parts) for parts in zip(*results)]  # noqa: B905

    def kept_threads(self) -> list[int]:
        """Threads that serve one engine after another, and may have been started unpinned."""
        return []

    @contextmanager
    def _pinned(self) -> Iterator[list[int]]:
        """Keep this thread, and the threads that an engine starts, on fixed cores: which."""
        before = os.sched_getaffinity(0)
        cores = sorted(before)[-self.threads :]
        _pin([0, *self.kept_threads()], cores)
        try:
            yield cores
        finally:
            _pin([0, *self.kept_threads()], before)


def _pin(threads: list[int], cores: Iterable[int]) -> None:
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread, cores)


def random_input(
    type_name: str, shape: list[int], rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Seeded data, never zeros: zeros draw less power and can take shortcuts.

    Args:
        type_name: of the elements: float32, float16, uint8 or int8.
    """
    if type_name in ("float32", "float16"):
        return rng.standard_normal(shape).astype(type_name)
    if type_name == "uint8":
        return rng.integers(0, 256, shape).astype(np.uint8)
    if type_name == "int8":
        return rng.integers(-128, 128, shape).astype(np.int8)
    raise ValueError(f"inputs of type {type_name} are not supported")
