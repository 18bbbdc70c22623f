"""The two ways to CUDA: the real cuda-bindings without a driver, and both against strict fakes."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hwloop.device import cuda_bindings
from hwloop.device.cuda import CudaError, open_backend, version_text
from hwloop.device.cuda_bindings import CudaBindings
from hwloop.device.cuda_library import CudaLibrary, Cudart, find
from hwloop.device.cuda_pycuda import PyCuda

SUCCESS, INVALID, NOT_PERMITTED = 0, 1, 901


class Runtime(ModuleType):
    """``cuda.bindings.runtime``: every call returns a tuple whose first item is the error."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.calls: list[tuple[Any, ...]] = []
        self.errors: dict[str, int] = {}
        self.host: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*args: Any) -> tuple[Any, ...]:
            self.calls.append((name, *args))
            if self.errors.get(name):
                return (self.errors[name], None)
            return (SUCCESS, *self._values(name, *args))

        return call

    def _values(self, name: str, *args: Any) -> tuple[Any, ...]:
        if name == "cudaMallocHost":
            self.host.append(np.zeros(args[0], np.uint8))
            return (self.host[-1].ctypes.data,)
        properties = SimpleNamespace(
            name=b"Orin\0\0",
            major=8,
            minor=7,
            multiProcessorCount=8,
            totalGlobalMem=1,
            integrated=1,
        )
        answers: dict[str, tuple[Any, ...]] = {
            "cudaGetErrorString": (b"it does not work",),
            "cudaGetDeviceProperties": (properties,),
            "cudaDriverGetVersion": (12060,),
            "cudaMemGetInfo": (10, 20),
            "cudaMalloc": (4096,),
            "cudaStreamCreateWithFlags": (77,),
            "cudaEventCreate": (88,),
            "cudaEventElapsedTime": (1.5,),
            "cudaStreamEndCapture": ("captured",),
            "cudaGraphInstantiate": ("graph",),
        }
        return answers.get(name, ())

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    made = Runtime()
    for name in ("cuda", "cuda.bindings"):
        package = ModuleType(name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made)
    return made


def test_every_call_exists_in_the_real_cuda_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    tree = ast.parse(Path(cuda_bindings.__file__).read_text())
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used = {str(name) for name in texts | attributes if str(name).startswith("cuda")}
    calls = {name for name in used if name.isidentifier() and "Memcpy" not in name} - {"cuda"}
    found = {name for name in calls if hasattr(real, name)}
    assert calls - found == {"cudaStreamCaptureModeThreadLocal"}
    assert len(found) > 20
    assert real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal is not None
    assert real.cudaMemcpyKind.cudaMemcpyHostToDevice != real.cudaMemcpyKind.cudaMemcpyDeviceToHost


@pytest.mark.skipif(any(Path("/dev").glob("nv*-ctrl*")), reason="this machine has a Jetson's GPU")
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def library() -> Cudart:
    try:
        return Cudart(find())
    except CudaError:
        pytest.skip("no libcudart here: pip install nvidia-cuda-runtime")


def test_every_call_exists_in_the_real_runtime_library() -> None:
    real = library()
    error, version = real.cudaRuntimeGetVersion()
    assert error == SUCCESS
    assert version >= 12000
    tree = ast.parse(Path(cuda_bindings.__file__).read_text())
    called = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    names = {str(name) for name in called if str(name).startswith("cuda") and "_" not in str(name)}
    for name in names - {"cuda-bindings", "cudaGetDeviceProperties"}:
        if name.isidentifier():
            assert callable(getattr(real, name)), name


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_the_runtime_library_says_why_it_cannot() -> None:
    library()
    with pytest.raises(CudaError, match=r"cudaSetDevice: .+ \(\d+\)"):
        CudaLibrary()


def test_the_newest_runtime_library_is_found_where_jetpack_has_it(tmp_path: Path) -> None:
    for version in ("12.2", "12.6"):
        folder = tmp_path / f"usr/local/cuda-{version}/targets/aarch64-linux/lib"
        folder.mkdir(parents=True)
        (folder / f"libcudart.so.{version}").touch()
    assert find(tmp_path).endswith("cuda-12.6/targets/aarch64-linux/lib/libcudart.so.12.6")


def test_the_runtime_library_passes_arguments_as_declared(tmp_path: Path) -> None:
    """A library of our own, compiled here, that checks what arrives and answers known values."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    fake = tmp_path / "libcudart.so"
    source = Path(__file__).parent / "data" / "fake_cudart.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", fake, source], check=True, timeout=60)
    backend = CudaLibrary(str(fake))
    assert backend.memory_info() == (1 << 33, 1 << 34)
    assert backend.alloc(1 << 32) == 0x7F0000001000
    stream, start, end = backend.new_stream(), backend.new_event(), backend.new_event()
    assert backend.elapsed_ms(start, end) == 1.5
    data = np.arange(8, dtype=np.float32)
    copy = np.zeros_like(data)
    pinned = backend.alloc_pinned(data.nbytes)
    backend.to_device(pinned.ctypes.data, data, stream)
    backend.to_host(copy, pinned.ctypes.data, stream)
    assert np.array_equal(copy, data)
    graph = backend.capture(stream, lambda: None)
    backend.replay(graph, stream)
    backend.free_graph(graph)
    backend.free_pinned(pinned)
    with pytest.raises(CudaError, match=r"cudaFree: invalid argument \(1\)"):
        backend.free(5)


def test_without_a_driver_the_reasons_and_the_packages_are_told() -> None:
    with pytest.raises(CudaError) as caught:
        open_backend("auto")
    for part in ("cuda-bindings: ", "pycuda: ", "pip install"):
        assert part in str(caught.value)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"settings\.cuda is 'opencl'"):
        open_backend("opencl")


def test_an_error_names_the_call_and_the_reason(runtime: Runtime) -> None:
    backend = CudaBindings()
    runtime.errors["cudaMalloc"] = 2
    with pytest.raises(CudaError, match=r"cudaMalloc: it does not work \(2\)"):
        backend.alloc(100)


def test_properties_by_cuda_bindings(runtime: Runtime) -> None:
    found = CudaBindings().properties()
    assert (found.name, found.compute_capability, found.sm_count) == ("Orin", "8.7", 8)
    assert found.integrated is True
    assert found.driver_version == version_text(12060) == "12.6"


def test_memory_and_copies_by_cuda_bindings(runtime: Runtime) -> None:
    backend = CudaBindings()
    with backend.current():
        assert backend.memory_info() == (10, 20)
        pinned = backend.alloc_pinned(8)
        pinned[:] = 7
        assert runtime.host[0].tolist() == [7] * 8  # the very memory that CUDA gave
        view = pinned.view(np.float32)
        stream = backend.new_stream()
        backend.to_device(4096, view, stream)
        backend.to_host(view, 4096, stream)
        backend.free_pinned(pinned)
    address = runtime.host[0].ctypes.data
    assert ("cudaMemcpyAsync", 4096, address, 8, 1, 77) in runtime.calls
    assert ("cudaMemcpyAsync", address, 4096, 8, 2, 77) in runtime.calls
    assert ("cudaFreeHost", address) in runtime.calls
    assert ("cudaStreamCreateWithFlags", 1) in runtime.calls  # never waits for the default stream


def test_a_capture_becomes_a_graph_that_is_replayed(runtime: Runtime) -> None:
    backend = CudaBindings()
    stream = backend.new_stream()
    graph = backend.capture(stream, lambda: runtime.calls.append(("work",)))
    backend.replay(graph, stream)
    backend.free_graph(graph)
    assert runtime.names()[-7:] == [
        "cudaStreamBeginCapture",
        "work",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
        "cudaGraphLaunch",
        "cudaGraphExecDestroy",
    ]


def test_a_capture_ends_whatever_fails_in_it(runtime: Runtime) -> None:
    def fail() -> None:
        raise RuntimeError("not permitted")

    backend = CudaBindings()
    with pytest.raises(CudaError, match="nothing was captured: not permitted"):
        backend.capture(backend.new_stream(), fail)
    assert runtime.names()[-2:] == ["cudaStreamEndCapture", "cudaGetLastError"]
    runtime.errors["cudaStreamEndCapture"] = NOT_PERMITTED
    with pytest.raises(CudaError, match="901"):
        backend.capture(backend.new_stream(), lambda: None)
    assert runtime.names()[-1] == "cudaGetLastError"


# ------------------------------------------------------------------------------------ pycuda


class Driver(ModuleType):
    """``pycuda.driver``: the context must be pushed for everything, and popped at the end."""

    device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT="sm", INTEGRATED="integrated")

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.depth = 0
        self.freed: list[Any] = []
        driver = self

        class Context:
            def push(self) -> None:
                driver.depth += 1

            @staticmethod
            def pop() -> None:
                driver.depth -= 1

        class Device:
            def __init__(self, index: int) -> None:
                assert index == 0

            def retain_primary_context(self) -> Context:
                return Context()

            def name(self) -> str:
                return "Orin"

            def compute_capability(self) -> tuple[int, int]:
                return (8, 7)

            def total_memory(self) -> int:
                return 1

            def get_attribute(self, name: str) -> int:
                return {"sm": 4, "integrated": 1}[name]

        class Allocation(int):
            def free(self) -> None:
                driver.need()
                driver.freed.append(self)

        class Stream:
            handle = 55

            def __init__(self, flags: int) -> None:
                driver.need()
                assert flags == 1

            def synchronize(self) -> None:
                driver.need()

        class Event:
            def record(self, stream: Stream) -> None:
                assert isinstance(stream, Stream)

            def time_since(self, start: Event) -> float:
                assert start is not self
                return 2.5

        self.Context, self.Device, self.Allocation = Context, Device, Allocation
        self.Stream, self.Event = Stream, Event

    def need(self) -> None:
        assert self.depth > 0, "the context is not current"

    def init(self) -> None: ...

    def get_driver_version(self) -> int:
        return 12060

    def mem_get_info(self) -> tuple[int, int]:
        self.need()
        return (10, 20)

    def mem_alloc(self, size_bytes: int) -> Any:
        self.need()
        return self.Allocation(4096)

    def memcpy_htod_async(self, target: int, source: np.ndarray, stream: Any) -> None:
        assert (target, isinstance(source, np.ndarray)) == (4096, True)

    def memcpy_dtoh_async(self, target: np.ndarray, source: int, stream: Any) -> None:
        assert (isinstance(target, np.ndarray), source) == (True, 4096)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", made)
    return made


def test_pycuda_works_in_the_pushed_primary_context(driver: Driver) -> None:
    backend = PyCuda()
    assert backend.properties().sm_count == 4
    with backend.current():
        assert driver.depth == 1
        address = backend.alloc(16)
        stream = backend.new_stream()
        backend.to_device(address, np.zeros(4, np.float32), stream)
        backend.to_host(np.zeros(4, np.float32), address, stream)
        start, end = backend.new_event(), backend.new_event()
        backend.record(start, stream)
        backend.record(end, stream)
        backend.synchronize(stream)
        assert backend.elapsed_ms(start, end) == 2.5
        assert (backend.handle(stream), backend.memory_info()) == (55, (10, 20))
        backend.free(address)
    assert driver.depth == 0
    assert driver.freed == [4096]


def test_pycudas_context_is_popped_after_an_error(driver: Driver) -> None:
    backend = PyCuda()
    with pytest.raises(RuntimeError, match="in between"), backend.current():
        raise RuntimeError("in between")
    assert driver.depth == 0


def test_pycuda_never_imports_autoinit(driver: Driver) -> None:
    open_backend("pycuda")
    assert "pycuda.autoinit" not in sys.modules


def test_pycuda_says_that_it_has_no_graphs(driver: Driver) -> None:
    backend = PyCuda()
    assert not backend.can_graph
    with pytest.raises(CudaError, match="cuda-bindings can"):
        backend.capture(None, lambda: None)


@pytest.mark.parametrize(("graph", "name"), [(True, "cuda-bindings"), (False, "pycuda")])
def test_graphs_decide_which_backend_is_taken(
    runtime: Runtime, driver: Driver, graph: bool, name: str
) -> None:
    assert open_backend("auto", graph=graph).name == name


def test_one_backend_that_fails_leaves_the_other(runtime: Runtime, driver: Driver) -> None:
    runtime.errors["cudaSetDevice"] = 35
    assert open_backend("auto").name == "pycuda"
    with pytest.raises(CudaError, match="cuda-bindings: cudaSetDevice"):
        open_backend("cuda-bindings")


@pytest.mark.parametrize(
    "name", ["cuda", "cuda_bindings", "cuda_library", "cuda_pycuda", "trt", "trt_run"]
)
def test_no_module_imports_a_runtime_when_it_is_imported(name: str) -> None:
    tree = ast.parse((Path(cuda_bindings.__file__).parent / f"{name}.py").read_text())
    tops = {
        ast.unparse(node).split()[1].partition(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not tops & {"cuda", "pycuda", "tensorrt"}
