"""Running an engine: addresses set once, one stream of its own, everything freed in order."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

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
LINEAR = "LINEAR"
if TYPE_CHECKING:  # numpy 1.21, which JetPack 6 has, cannot subscript its types
    Array = np.ndarray[Any, Any]


class RunFailed(Exception):
    """The engine cannot be opened or run; the message is the reason."""


class IoTensor:
    """One input or output in device memory.

    Attributes:
        shape, dtype: as numpy.
        layout: TensorRT's name of the format: LINEAR is row-major, others group channels.
        elements: numbers that the memory holds, with what a layout pads.
    """

    def __init__(
        self,
        name: str,
        *,
        is_input: bool,
        shape: tuple[int, ...],
        dtype: Any,
        layout: str,
        elements: int,
    ) -> None:
        self.name = name
        self.is_input = is_input
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.layout = layout
        self.elements = elements
        self.size_bytes = elements * self.dtype.itemsize
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
        self._pinned: dict[str, Array] = {}
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
        layout = str(self._engine.get_tensor_format(name)).rsplit(".", 1)[-1]
        return IoTensor(
            name,
            is_input=self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            shape=shape,
            dtype=DTYPES[kind],
            layout=layout,
            elements=int(np.prod(shape)) if layout == LINEAR else self._elements(name, shape),
        )

    def _elements(self, name: str, shape: tuple[int, ...]) -> int:
        """Numbers in the memory of a tensor whose channels are grouped, padding included."""
        grouped = max(int(self._engine.get_tensor_components_per_element(name)), 1)
        axis = int(self._engine.get_tensor_vectorized_dim(name))
        sizes = list(shape)
        if axis >= 0:
            sizes[axis] = -(-sizes[axis] // grouped)
        # Strides count whole groups, and may leave more room than the groups need.
        strides = [int(stride) for stride in self._context.get_tensor_strides(name)]
        spans = [size * stride for size, stride in zip(sizes, strides)]  # noqa: B905 - equally long
        return max(int(np.prod(sizes)), *spans) * grouped

    def enqueue(self) -> None:
        """One run on the engine's stream, without waiting for it."""
        if not self._context.execute_async_v3(self._cuda.handle(self.stream)):
            raise RunFailed(f"TensorRT cannot run the engine: {self._log.tail()}")

    def round_trip(self) -> None:
        """Copy the inputs in, run, copy the outputs out; nothing is waited for."""
        for tensor in self.tensors:
            if tensor.is_input:
                self._cuda.to_device(tensor.address, self._host_copy(tensor), self.stream)
        self.enqueue()
        for tensor in self.tensors:
            if not tensor.is_input:
                self._cuda.to_host(self._host_copy(tensor), tensor.address, self.stream)

    def _host_copy(self, tensor: IoTensor) -> Array:
        """Page-locked memory of a tensor's size and type, kept until the engine is closed."""
        if tensor.name not in self._pinned:
            memory = self._cuda.alloc_pinned(tensor.size_bytes)
            self._pinned[tensor.name] = memory
            if tensor.is_input:
                memory.view(tensor.dtype)[:] = random_input(
                    tensor, np.random.default_rng(INPUT_SEED)
                ).reshape(-1)
        return self._pinned[tensor.name].view(tensor.dtype)

    def infer(self, inputs: Array) -> list[Array]:
        """Outputs of every input, stacked; the engine's batch at a time.

        Raises:
            RunFailed: the engine has several inputs, takes another shape or kind of number, or
                is one of a row, whose tensors are not row-major.
        """
        for tensor in self.tensors:
            if tensor.layout != LINEAR:
                raise RunFailed(
                    f"{tensor.name!r} is {tensor.layout}: an engine built for a row is timed, "
                    "and takes no inputs"
                )
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
        views = {
            tensor.name: self._host_copy(tensor).reshape(tensor.shape) for tensor in self.tensors
        }
        parts: dict[str, list[Array]] = {tensor.name: [] for tensor in outputs}
        for start in range(0, len(inputs), batch):
            chunk = inputs[start : start + batch]
            views[source.name][: len(chunk)] = chunk  # a short last one keeps old rows behind
            self.round_trip()
            self._cuda.synchronize(self.stream)
            for tensor in outputs:
                parts[tensor.name].append(views[tensor.name][: len(chunk)].copy())
        return [np.concatenate(parts[tensor.name]) for tensor in outputs]

    def describe(self) -> str:
        """The inspector's JSON of the whole engine."""
        kind = self._trt.LayerInformationFormat.JSON
        text = self._engine.create_engine_inspector().get_engine_information(kind)
        if not text:
            raise RunFailed(f"TensorRT does not describe its engine: {self._log.tail()}")
        return str(text)

    def close(self) -> None:
        """Once what was enqueued has ended: context, engine and runtime, then their memory."""
        stream, self.stream = self.stream, None
        pinned, self._pinned = list(self._pinned.values()), {}
        actions: list[Callable[[], None]] = []
        if stream is not None:
            actions.append(partial(self._cuda.synchronize, stream))
        actions.append(self._release)
        for tensor in self.tensors:
            if tensor.address:
                actions.append(partial(self._cuda.free, tensor.address))
                tensor.address = 0
        actions += [partial(self._cuda.free_pinned, memory) for memory in pinned]
        if stream is not None:
            actions.append(partial(self._cuda.free_stream, stream))
        free_all(*actions)

    def _release(self) -> None:
        self._context = None
        self._engine = None
        self._runtime = None


def random_input(tensor: IoTensor, rng: np.random.Generator) -> Array:
    """Seeded data, never zeros: zeros draw less power, so clocks differ."""
    shape = tensor.shape if tensor.layout == LINEAR else (tensor.elements,)
    if tensor.dtype.kind == "f":
        return rng.standard_normal(shape).astype(tensor.dtype)
    if tensor.dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(np.bool_)
    bounds = np.iinfo(np.uint8 if tensor.dtype.kind == "u" else np.int8)
    return rng.integers(bounds.min, bounds.max + 1, shape).astype(tensor.dtype)


def free_all(*actions: Callable[[], None]) -> None:
    """Do all of them whatever fails; the first failure is raised where no error is on its way.

    After an error that ends CUDA for this process every call fails, and the first is the reason.
    """
    failed: Exception | None = None
    for action in actions:
        try:
            action()
        except Exception as error:  # pycuda's own exceptions have no common class
            failed = failed or error
    if failed is not None and sys.exc_info()[0] is None:
        raise failed
