"""The ways to CUDA: the real cuda-bindings without a driver, and both against strict fakes."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_jetson import plant

from hwloop.device import cuda_bindings, cuda_library
from hwloop.device.cuda import CudaError, version_text
from hwloop.device.cuda_backends import install_hint, open_backend
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


CUDA_FOLDER = "usr/local/cuda-{}/targets/aarch64-linux/lib"


def compiled(path: Path, source: str, *defines: str) -> Path:
    """A shared library from tests/data."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-shared", "-fPIC", *defines, "-o", path]
    subprocess.run([*command, Path(__file__).parent / "data" / source], check=True, timeout=60)
    return path


def cudart(root: Path, version: str, *, driver: int = 12060) -> Path:
    """A runtime library of ``version``, a text such as 12.6, where CUDA's packages put theirs."""
    major, minor = version.split(".")
    number = int(major) * 1000 + int(minor) * 10
    path = root / CUDA_FOLDER.format(version) / f"libcudart.so.{version}"
    return compiled(path, "fake_cudart.c", f"-DVERSION={number}", f"-DDRIVER={driver}")


@pytest.fixture
def only_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has no runtime library but those below the returned folder."""
    everywhere = cuda_library.candidates
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    monkeypatch.setattr(cuda_library, "candidates", lambda root=tmp_path: everywhere(root))
    return tmp_path


def test_runtime_libraries_are_ordered_by_number_newest_first(only_below: Path) -> None:
    for version in ("12.9", "12.10", "9.2", "13.0"):
        folder = only_below / CUDA_FOLDER.format(version)
        folder.mkdir(parents=True)
        (folder / f"libcudart.so.{version}").touch()
    found = [path.partition(".so.")[2] for path in cuda_library.candidates()]
    assert found == ["13.0", "12.10", "12.9", "9.2"]
    assert find(only_below).endswith("cuda-13.0/targets/aarch64-linux/lib/libcudart.so.13.0")


def test_a_library_of_many_names_is_one_candidate(only_below: Path) -> None:
    folder = only_below / CUDA_FOLDER.format("12.6")
    folder.mkdir(parents=True)
    (folder / "libcudart.so.12.6.77").touch()
    (folder / "libcudart.so.12").symlink_to("libcudart.so.12.6.77")
    (folder / "libcudart.so").symlink_to("libcudart.so.12")
    (only_below / "usr/local/cuda").symlink_to("cuda-12.6")
    (only_below / "usr/local/cuda-12.6/lib64").symlink_to("targets/aarch64-linux/lib")
    wheel = only_below / "site-packages/nvidia/cuda_runtime/lib/libcudart.so.12"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    first, second = cuda_library.candidates()
    assert first.startswith(f"{only_below}/usr/local/cuda/lib64/")
    assert second == str(wheel)  # a wheel is looked at even where the system has one


def test_without_any_runtime_library_that_is_said(only_below: Path) -> None:
    for call in (lambda: find(only_below), CudaLibrary):
        with pytest.raises(CudaError, match="there is no libcudart"):
            call()


@pytest.mark.parametrize(
    ("driver", "opened"), [(12060, "12.6"), (13000, "13.0"), (12020, "12.6")], ids=str
)
def test_the_newest_library_that_the_driver_can_run_is_taken(
    only_below: Path, driver: int, opened: str
) -> None:
    for version in ("11.8", "12.6", "13.0"):
        cudart(only_below, version, driver=driver)
    backend = CudaLibrary()
    assert version_text(backend._call("cudaRuntimeGetVersion")) == opened


def test_when_no_library_opens_the_device_each_has_its_reason(only_below: Path) -> None:
    cudart(only_below, "11.8")
    cudart(only_below, "13.0")
    broken = only_below / CUDA_FOLDER.format("12.6") / "libcudart.so.12.6"
    broken.parent.mkdir(parents=True)
    broken.write_text("not a library")
    with pytest.raises(CudaError) as caught:
        CudaLibrary()
    reasons = str(caught.value).split("; ")
    assert "so.13.0: cudaSetDevice: CUDA driver version is insufficient" in reasons[0]
    assert f"{broken}: " in reasons[1]
    assert "so.11.8: CUDA 11.8 is too old: 12.0 is needed" in reasons[2]


def test_a_library_that_was_named_is_the_only_one_tried(only_below: Path) -> None:
    cudart(only_below, "12.6")
    with pytest.raises(CudaError, match="insufficient") as caught:
        CudaLibrary(str(cudart(only_below / "elsewhere", "13.0")))
    assert "12.6" not in str(caught.value)


def driver_says(tmp_path: Path, expression: str) -> str:
    """In a process whose driver is the one of tests/data; a loaded one cannot be replaced."""
    compiled(tmp_path / "libcuda.so.1", "fake_libcuda.c")
    code = f"from hwloop.device import cuda_library; print({expression})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


def test_the_driver_names_the_device_that_cuda_takes_first(tmp_path: Path) -> None:
    uuid = driver_says(tmp_path, "cuda_library.device_uuid()")
    assert uuid == "GPU-22222222-2222-2222-2222-222222222222"
    assert driver_says(tmp_path, "cuda_library._device_name()") == "the fast one"


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_without_a_driver_no_device_is_named() -> None:
    assert cuda_library.device_uuid() is None


def test_the_runtime_library_passes_arguments_as_declared(tmp_path: Path) -> None:
    """A library of our own, compiled here, that checks what arrives and answers known values."""
    backend = CudaLibrary(str(compiled(tmp_path / "libcudart.so", "fake_cudart.c")))
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
    for part in ("cuda-bindings: ", "pycuda: ", install_hint()):
        assert part in str(caught.value)


def test_a_board_is_sent_to_jetpack_and_a_card_to_pip(tmp_path: Path) -> None:
    board = install_hint(plant("orin_nano", tmp_path / "board"))
    assert "JetPack" in board
    assert "pip install" not in board
    card = install_hint(tmp_path / "desktop")
    assert f"{sys.executable} -m pip install" in card
    assert "JetPack" not in card


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
