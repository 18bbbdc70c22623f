"""Running an engine: addresses set once, one stream of its own, everything freed in order."""

from __future__ import annotations

from typing import Any

import numpy as np

from hwloop.device.cuda import CudaBackend
from hwloop.device.trt_build import logger

INPUT_SEED = 7
# TensorRT's own nptype() raises for what numpy lacks, and uses names that numpy removed.
DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
Array = np.ndarray[Any, Any]


class RunFailed(Exception):
    """The engine cannot be opened or run; the message is the reason."""


class IoTensor:
    """One input or output in device memory.

    Attributes:
        shape, dtype: as numpy; TensorRT's default layout of inputs and outputs is row-major.
    """

    def __init__(self, name: str, *, is_input: bool, shape: tuple[int, ...], dtype: Any) -> None:
        self.name = name
        self.is_input = is_input
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.size_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self.address = 0


class OpenEngine:
    """A plan that is ready to run, filled with seeded inputs; :meth:`close` it inside the same
    ``cuda.current()``.

    Raises:
        RunFailed: TensorRT refuses the plan, the device's memory is full, or a tensor is of a
            kind that is not supported (dynamic shape, a shape in host memory, bf16).
    """

    def __init__(self, plan: bytes, *, trt: Any, cuda: CudaBackend) -> None:
        self._trt = trt
        self._cuda = cuda
        self._log = logger(trt)
        self.tensors: list[IoTensor] = []
        self._engine: Any = None
        self._context: Any = None
        self._runtime: Any = None
        self.stream: Any = None
        self._log.clear()
        try:
            self._open(plan)
        except BaseException:
            self.close()
            raise

    def _open(self, plan: bytes) -> None:
        # No local names for TensorRT's objects: a traceback would keep them after close().
        self._runtime = self._trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise RunFailed(f"TensorRT does not read its engine: {self._log.tail()}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            free, total = (size >> 20 for size in self._cuda.memory_info())
            raise RunFailed(
                f"no memory to run the engine ({free} of {total} MiB free): {self._log.tail()}"
            )
        # An engine with details annotates every layer for profilers at each enqueue.
        self._context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE
        self.stream = self._cuda.new_stream()
        rng = np.random.default_rng(INPUT_SEED)
        for index in range(self._engine.num_io_tensors):
            tensor = self._tensor(index)
            self.tensors.append(tensor)
            tensor.address = self._cuda.alloc(tensor.size_bytes)
            if not self._context.set_tensor_address(tensor.name, tensor.address):
                raise RunFailed(f"address of {tensor.name!r} refused: {self._log.tail()}")
            if tensor.is_input:
                value = random_input(tensor, rng)
                self._cuda.to_device(tensor.address, value, self.stream)
                self._cuda.synchronize(self.stream)  # before the host's copy goes

    def _tensor(self, index: int) -> IoTensor:
        trt = self._trt
        name = self._engine.get_tensor_name(index)
        shape = tuple(int(size) for size in self._engine.get_tensor_shape(name))
        kind = str(self._engine.get_tensor_dtype(name)).rsplit(".", 1)[-1]
        if any(size < 0 for size in shape):
            raise RunFailed(f"{name!r} has a dynamic shape {shape}; export static shapes")
        if self._engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise RunFailed(f"{name!r} is a shape in host memory, which is not supported")
        if kind not in DTYPES:
            raise RunFailed(f"{name!r} is {kind}, which numpy lacks; cast it in the graph")
        is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        return IoTensor(name, is_input=is_input, shape=shape, dtype=DTYPES[kind])

    def enqueue(self) -> None:
        """One run on the engine's stream, without waiting for it."""
        if not self._context.execute_async_v3(self._cuda.handle(self.stream)):
            raise RunFailed(f"TensorRT cannot run the engine: {self._log.tail()}")

    def infer(self, inputs: Array) -> list[Array]:
        """Outputs of every input, stacked; the engine's batch at a time.

        Raises:
            RunFailed: the engine has several inputs, or takes another shape or kind of number.
        """
        sources = [tensor for tensor in self.tensors if tensor.is_input]
        if len(sources) != 1:
            raise RunFailed(f"the engine has {len(sources)} inputs, one array was given")
        source = sources[0]
        if inputs.shape[1:] != source.shape[1:] or (
            inputs.dtype != source.dtype and not {inputs.dtype.kind, source.dtype.kind} <= {"f"}
        ):
            wanted = f"{source.dtype} {source.shape}"
            raise RunFailed(f"the engine takes {wanted}, not {inputs.dtype} {inputs.shape}")
        batch = source.shape[0]
        outputs = [tensor for tensor in self.tensors if not tensor.is_input]
        pinned = {
            tensor.name: self._cuda.alloc_pinned(tensor.size_bytes) for tensor in self.tensors
        }
        views = {
            tensor.name: pinned[tensor.name].view(tensor.dtype).reshape(tensor.shape)
            for tensor in self.tensors
        }
        parts: dict[str, list[Array]] = {tensor.name: [] for tensor in outputs}
        try:
            for start in range(0, len(inputs), batch):
                chunk = inputs[start : start + batch]
                views[source.name][: len(chunk)] = chunk  # a short last one keeps old rows behind
                self._cuda.to_device(source.address, views[source.name], self.stream)
                self.enqueue()
                for tensor in outputs:
                    self._cuda.to_host(views[tensor.name], tensor.address, self.stream)
                self._cuda.synchronize(self.stream)
                for tensor in outputs:
                    parts[tensor.name].append(views[tensor.name][: len(chunk)].copy())
        finally:
            self._cuda.synchronize(self.stream)
            views.clear()
            for memory in pinned.values():
                self._cuda.free_pinned(memory)
        return [np.concatenate(parts[tensor.name]) for tensor in outputs]

    def describe(self) -> str:
        """The inspector's JSON of the whole engine."""
        kind = self._trt.LayerInformationFormat.JSON
        text = self._engine.create_engine_inspector().get_engine_information(kind)
        if not text:
            raise RunFailed(f"TensorRT does not describe its engine: {self._log.tail()}")
        return str(text)

    def close(self) -> None:
        """Context, engine and runtime go first, then what they point to."""
        self._context = None
        self._engine = None
        self._runtime = None
        for tensor in self.tensors:
            if tensor.address:
                self._cuda.free(tensor.address)
                tensor.address = 0
        if self.stream is not None:
            self._cuda.free_stream(self.stream)
            self.stream = None


def random_input(tensor: IoTensor, rng: np.random.Generator) -> Array:
    """Seeded data, never zeros: zeros draw less power, so clocks differ."""
    if tensor.dtype.kind == "f":
        return rng.standard_normal(tensor.shape).astype(tensor.dtype)
    if tensor.dtype.kind == "b":
        return rng.integers(0, 2, tensor.shape).astype(np.bool_)
    bounds = np.iinfo(np.uint8 if tensor.dtype.kind == "u" else np.int8)
    return rng.integers(bounds.min, bounds.max + 1, tensor.shape).astype(tensor.dtype)
