"""The part of TensorRT's Python API that hwloop uses, and nothing else, with its manners.

It says None instead of raising, logs the reason, and objects to what TensorRT objects to. A model
is a JSON object that says how it behaves; see :func:`model`. tests/test_trt_names.py compares the
names with NVIDIA's own modules.
"""

from __future__ import annotations

import enum
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

__version__ = "10.3.0"

NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "BF16": np.float16}


def model(**changes: Any) -> bytes:
    """A model with one input and one output; ``out[i] = 2 * in[i]``.

    Args:
        changes: ms, plain_extra_ms: duration of a run in a graph, and what a plain one costs the
            device more; inputs, outputs: [name, shape, dtype]; layers: dtype of each; build_s;
            capturable; likes: the layout of inputs and outputs that its kernel wants; reformat_ms:
            what each of them costs in another; fail: parse, network, build, deserialize, context,
            address, enqueue, illegal; die: a signal; pid_file: where the builder writes its
            process.
    """
    plain = {
        "ms": 1.0,
        "plain_extra_ms": 0.25,
        "inputs": [["input", [2, 4], "FLOAT"]],
        "outputs": [["output", [2, 3], "FLOAT"]],
        "layers": ["HALF", "HALF", "FLOAT"],
        "build_s": 0.0,
        "capturable": True,
        "likes": "LINEAR",
        "reformat_ms": 0.0,
    }
    return json.dumps({**plain, **changes}).encode()


def gpu() -> Any:
    """The played GPU. A builder's process has none: only hwloop's building modules are there."""
    import fake_cuda

    return fake_cuda.DEVICE


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BF16 = range(5)


class TensorFormat(enum.IntEnum):
    LINEAR, CHW2, HWC8, CHW4, CHW16, CHW32, DHWC8, CDHW32, HWC, DLA_LINEAR, DLA_HWC4, HWC16 = range(
        12
    )

    __str__ = enum.Enum.__str__  # as pybind11's


ALL_FORMATS = (1 << len(TensorFormat)) - 1
GROUPED = {"CHW2": 2, "HWC8": 8, "CHW4": 4, "CHW32": 32, "HWC16": 16}


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32, SPARSE_WEIGHTS = range(2)


class MemoryPoolType(enum.Enum):
    WORKSPACE, TACTIC_DRAM = range(2)


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class LayerInformationFormat(enum.Enum):
    ONELINE, JSON = range(2)


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.initialised = True


class IProgressMonitor:
    def __init__(self) -> None:
        self.initialised = True


def say(log: Any, severity: str, message: str) -> None:
    assert log.initialised, "a logger must call its base's initialiser"
    log.log(ILogger.Severity[severity], message)


class Builder:
    def __init__(self, log: Any) -> None:
        self._log = log
        say(log, "VERBOSE", "a builder")

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        spec = network.spec
        assert spec is not None, "nothing was parsed"
        config.check()
        if "pid_file" in spec:
            Path(spec["pid_file"]).write_text(str(os.getpid()))
        if "die" in spec:
            os.kill(os.getpid(), spec["die"])
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 100)
        going, ends = True, time.monotonic() + spec["build_s"]
        while going and time.monotonic() < ends:
            time.sleep(0.01)
            going = monitor.step_complete("Building", 1)
        monitor.phase_finish("Building")
        if not going:
            return None
        if spec.get("fail") == "build":
            say(self._log, "ERROR", "Could not find any implementation for node conv1")
            return None
        say(self._log, "WARNING", "a warning of the builder")
        if "SPARSE_WEIGHTS" in config.flags:
            say(self._log, "INFO", "(Sparsity) Found 5 layer(s) eligible to use sparse tactics: a")
            say(self._log, "INFO", "(Sparsity) Chose 2 layer(s) using sparse tactics: a, b")
        if config.cache is not None:
            config.cache.data += b"timing;"
        formats = {name: tensor.chosen(spec["likes"]) for name, tensor in network.tensors.items()}
        return json.dumps({**spec, "formats": formats, "config": config.described()}).encode()


class Network:
    def __init__(self) -> None:
        self.spec: dict[str, Any] | None = None
        self.tensors: dict[str, Tensor] = {}

    @property
    def num_inputs(self) -> int:
        assert self.spec is not None
        return len(self.spec["inputs"])

    @property
    def num_outputs(self) -> int:
        assert self.spec is not None
        return len(self.spec["outputs"])

    def get_input(self, index: int) -> Tensor:
        assert self.spec is not None
        return self.tensors[self.spec["inputs"][index][0]]

    def get_output(self, index: int) -> Tensor:
        assert self.spec is not None
        return self.tensors[self.spec["outputs"][index][0]]

    @property
    def num_layers(self) -> int:
        return len(self.spec["layers"]) if self.spec else 0

    def get_layer(self, index: int) -> Layer:
        assert self.spec is not None
        return Layer(self.spec["layers"][index])


class Tensor:
    """An input or output of a network."""

    def __init__(self, item: list[Any]) -> None:
        self.shape = tuple(item[1])
        self.dtype = DataType[item[2]]
        self.allowed_formats = ALL_FORMATS

    def chosen(self, liked: str) -> str:
        """What is liked where it was asked for; who allows all has asked for nothing."""
        asked = self.allowed_formats != ALL_FORMATS
        assert not asked or len(self.shape) >= 3, "grouped channels need three dimensions"
        return liked if asked and self.allowed_formats >> TensorFormat[liked] & 1 else "LINEAR"


class Layer:
    num_outputs = 1

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def get_output(self, index: int) -> Any:
        assert index == 0
        return type("Tensor", (), {"dtype": DataType[self._kind]})()


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, log: Any) -> None:
        self._network = network

    def parse(self, data: bytes) -> bool:
        spec = json.loads(data)
        if spec.get("fail") == "parse":
            self.num_errors = 2
            return False
        self._network.spec = spec
        tensors = [*spec["inputs"], *spec["outputs"]]
        self._network.tensors = {item[0]: Tensor(item) for item in tensors}
        return True

    def get_error(self, index: int) -> Problem:
        return Problem(index)


class Problem:
    def __init__(self, index: int) -> None:
        self._index = index

    def desc(self) -> str:
        return ("unsupported attribute", "no importer registered for op: Secret")[self._index]

    def node_name(self) -> str:
        return ("/conv1/Conv", "/head/Secret")[self._index]

    def node_operator(self) -> str:
        return ("Conv", "Secret")[self._index]


class Config:
    KNOWN = (
        "builder_optimization_level",
        "avg_timing_iterations",
        "profiling_verbosity",
        "progress_monitor",
    )

    def __init__(self) -> None:
        self.flags: set[str] = {"TF32"}
        self.decided: set[str] = set()
        self.pools: dict[str, int] = {}
        self.cache: TimingCache | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in (*self.KNOWN, "flags", "decided", "pools", "cache"), name
        super().__setattr__(name, value)

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag.name)
        self.decided.add(flag.name)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag.name)
        self.decided.add(flag.name)

    def set_memory_pool_limit(self, pool: MemoryPoolType, size_bytes: int) -> None:
        self.pools[pool.name] = size_bytes

    def create_timing_cache(self, data: bytes) -> TimingCache | None:
        return None if data.startswith(b"broken") else TimingCache(data)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data.startswith(b"another device"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache

    def check(self) -> None:
        assert all(name in vars(self) for name in self.KNOWN), "a setting was left to its default"
        assert "TF32" in self.decided, "TF32 was left on by default"
        assert self.profiling_verbosity is ProfilingVerbosity.DETAILED
        assert self.progress_monitor.initialised

    def described(self) -> dict[str, Any]:
        return {
            "flags": sorted(self.flags),
            "pools": self.pools,
            "level": self.builder_optimization_level,
            "avg_timing": self.avg_timing_iterations,
        }


class TimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data


class Tracked:
    """An object that lives in the CUDA context."""

    def __init__(self) -> None:
        assert gpu().depth > 0, "no CUDA context is current"
        gpu().live.add(self)


class Runtime(Tracked):
    def __init__(self, log: Any) -> None:
        super().__init__()
        self._log = log

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        spec = json.loads(plan)
        if spec.get("fail") == "deserialize":
            say(self._log, "ERROR", "the engine was built by another version")
            return None
        return Engine(spec, self._log)


class Engine(Tracked):
    def __init__(self, spec: dict[str, Any], log: Any) -> None:
        super().__init__()
        self._spec = spec
        self._log = log
        self._tensors = {item[0]: item for item in [*spec["inputs"], *spec["outputs"]]}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self._tensors[name][1])

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._tensors[name][2]]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        inputs = [item[0] for item in self._spec["inputs"]]
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def get_tensor_format(self, name: str) -> TensorFormat:
        return TensorFormat[self._spec["formats"][name]]

    def get_tensor_vectorized_dim(self, name: str) -> int:
        return 1 if self._spec["formats"][name] in GROUPED else -1

    def get_tensor_components_per_element(self, name: str) -> int:
        return GROUPED.get(self._spec["formats"][name], -1)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name == "shape" else TensorLocation.DEVICE

    def create_execution_context(self) -> Context | None:
        if self._spec.get("fail") == "context":
            say(self._log, "ERROR", "out of memory")
            return None
        return Context(self._spec, self._log)

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self._spec)


class Inspector(Tracked):
    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self._spec = spec

    def get_engine_information(self, kind: LayerInformationFormat) -> str:
        assert kind is LayerInformationFormat.JSON
        layers: list[Any] = ["conv1"]
        if self._spec.get("reformat_ms"):
            layers = [{"Name": "conv1", "LayerType": "CaskConvolution"}]
            layers += [
                {"Name": f"Reformatting CopyNode for {name}", "LayerType": "Reformat"}
                for name in reformatted(self._spec)
            ]
        return str(self._spec.get("inspector", json.dumps({"Layers": layers, "Bindings": []})))


def reformatted(spec: dict[str, Any]) -> list[str]:
    return [name for name, layout in spec["formats"].items() if layout != spec["likes"]]


def held_bytes(spec: dict[str, Any], name: str, shape: list[int], kind: str) -> int:
    """The memory of a tensor in its layout: the strides below pad each group's row by one."""
    grouped = GROUPED.get(spec["formats"][name])
    if grouped is None:
        return int(np.prod(shape)) * np.dtype(NUMPY[kind]).itemsize
    batch, channels, height, width = shape
    elements = batch * -(-channels // grouped) * height * (width + 1) * grouped
    return elements * np.dtype(NUMPY[kind]).itemsize


class Context(Tracked):
    nvtx_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

    def __init__(self, spec: dict[str, Any], log: Any) -> None:
        super().__init__()
        self._spec = spec
        self._log = log
        self.addresses: dict[str, int] = {}

    def get_tensor_strides(self, name: str) -> list[int]:
        shape = next(s for n, s, _ in [*self._spec["inputs"], *self._spec["outputs"]] if n == name)
        grouped = GROUPED[self._spec["formats"][name]]
        groups = -(-shape[1] // grouped)
        row = shape[3] + 1
        return [groups * shape[2] * row, shape[2] * row, row, 1]

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self._spec.get("fail") == "address":
            return False
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream != 0, "the default stream synchronises"
        assert stream in gpu().streams, "unknown stream"
        spec, capturing = self._spec, gpu().capturing is not None
        if spec.get("fail") == "enqueue" or (capturing and not spec["capturable"]):
            say(self._log, "ERROR", "operation not permitted when stream is capturing")
            return False
        assert self.nvtx_verbosity is ProfilingVerbosity.NONE
        for name, shape, kind in [*spec["inputs"], *spec["outputs"]]:
            assert name in self.addresses, f"no address for {name}"
            needed = held_bytes(spec, name, shape, kind)
            size_bytes = len(gpu().memory.get(self.addresses[name], b""))
            assert size_bytes >= needed, f"{name} needs {needed} bytes"
        if spec.get("fail") == "illegal":
            gpu().broken = "cudaStreamSynchronize: an illegal memory access was encountered (700)"
            return True
        gpu().launch()
        ms = spec["ms"] + spec["reformat_ms"] * len(reformatted(spec))
        if gpu().capturing is not None:
            gpu().capturing.append(lambda: self._run(ms))
        else:
            gpu().runs["plain"] += 1
            self._run(ms + spec["plain_extra_ms"])
        return True

    def _run(self, ms: float) -> None:
        gpu().work(ms)
        (source, in_shape, in_kind), *_ = self._spec["inputs"]
        raw = bytes(gpu().memory[self.addresses[source]])
        values = np.frombuffer(raw, NUMPY[in_kind]).reshape(in_shape[0], -1)
        for name, shape, kind in self._spec["outputs"]:
            width = int(np.prod(shape[1:]))
            result = (2 * values[:, :width]).astype(NUMPY[kind])
            gpu().write(self.addresses[name], result.tobytes())
