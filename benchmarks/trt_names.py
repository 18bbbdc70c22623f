"""Does every name of TensorRT's API that hwloop uses exist in the releases that it supports?

The bindings of each release are downloaded and imported on a machine without a GPU: they only need
a few symbols of TensorRT's libraries to load, which empty libraries made here provide. The result
is tests/data/trt_api_names.json; nothing of TensorRT itself is kept.

    python benchmarks/trt_names.py
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEVICE = ROOT / "hwloop" / "device"
RESULT = ROOT / "tests" / "data" / "trt_api_names.json"
SOURCES = ("trt", "trt_audit", "trt_build", "trt_cache", "trt_run", "trt_sampling", "trt_timing")
WHEELS = {
    "10.3.0": "tensorrt_cu12_bindings==10.3.0",
    "10.13.3.9": "tensorrt_cu13_bindings==10.13.3.9",
    "10.16.1.11": "tensorrt_cu13_bindings==10.16.1.11",
    "11.4.0.106": "tensorrt_cu13_bindings==11.4.0.106",
}
RTX_MODULE = "tensorrt_rtx_bindings"
TIMEOUT_S = 300
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "problem": "ParserError",
    "config": "IBuilderConfig",
    "layer": "ILayer",
    "output": "ITensor",
    "io_tensor": "ITensor",
    "formats": "TensorFormat",
    "types": "DataType",
    "timing_cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
"""Variables of the sources, with or without a leading underscore, and the class of their value."""

MADE_BY = {"create_engine_inspector": "EngineInspector"}
OVERRIDDEN = ("log", "phase_start", "step_complete", "phase_finish")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
PROBE = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
def exists(name):
    value = module
    for part in name.split("."):
        value = getattr(value, part, None)
        if value is None:
            return False
    return True
print(json.dumps([name for name in json.loads(sys.argv[2]) if exists(name)]))
"""


def used_names() -> dict[str, bool]:
    """Names of TensorRT's API in the sources, e.g. ``IBuilderConfig.set_flag``; True where the
    source asks with getattr or hasattr whether it exists.
    """
    found: dict[str, bool] = {}
    for source in SOURCES:
        for name, guarded in _names(ast.parse((DEVICE / f"{source}.py").read_text())):
            found[name] = found.get(name, True) and guarded
    return dict(sorted(found.items()))


def _names(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = _owner(node.value)
            if owner is not None:
                yield (f"{owner}.{node.attr}" if owner else node.attr), False
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("getattr", "hasattr") and isinstance(node.args[1], ast.Constant):
                owner = _owner(node.args[0])
                if owner is not None:
                    name = str(node.args[1].value)
                    yield (f"{owner}.{name}" if owner else name), True
        elif isinstance(node, ast.ClassDef):
            for base in filter(None, map(_owner, node.bases)):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name in OVERRIDDEN:
                        yield f"{base}.{method.name}", False


def _owner(node: ast.expr) -> str | None:
    """The class of an expression: "" for the module itself, None where it is not TensorRT's."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return MADE_BY.get(node.func.attr)
    if isinstance(node, ast.Attribute):
        parent = _owner(node.value)
        if parent == "":
            return node.attr  # trt.BuilderFlag
        name = node.attr
    elif isinstance(node, ast.Name):
        name = node.id
    else:
        return None
    name = name.lstrip("_")
    return "" if name == "trt" else CLASSES.get(name)


def probe(version: str, names: list[str], folder: Path) -> list[str]:
    """The names that exist in the bindings of a release."""
    arguments = ["-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    _run([*arguments, WHEELS[version], "-d", str(folder)])
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "wheel")
    major = version.split(".")[0]
    code = "".join(f"void {symbol}(void) {{}}\n" for symbol in SYMBOLS)
    (folder / "empty.c").write_text(code)
    for library in LIBRARIES:
        target = folder / f"lib{library}.so.{major}"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", str(target), str(folder / "empty.c")],
            check=True,
            timeout=TIMEOUT_S,
        )
    module = next((folder / "wheel").glob("tensorrt*bindings/__init__.py")).parent.name
    paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder / "wheel")}
    return _existing(module, names, paths)


def _existing(module: str, names: list[str], paths: dict[str, str]) -> list[str]:
    done = _run(["-c", PROBE, module, json.dumps(names)], paths)
    found: list[str] = json.loads(done.splitlines()[-1])
    return found


def _run(arguments: list[str], paths: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **(paths or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    return done.stdout


def main() -> None:
    names = list(used_names())
    found = {}
    for version in WHEELS:
        with tempfile.TemporaryDirectory() as folder:
            found[version] = probe(version, names, Path(folder))
    rtx = _run(["-c", f"import {RTX_MODULE} as trt; print(trt.__version__)"]).strip()
    found[f"rtx {rtx}"] = _existing(RTX_MODULE, names, {})
    exists = {name: [v for v, present in found.items() if name in present] for name in names}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"versions": list(found), "names": exists}, indent=1) + "\n")
    for name, versions in exists.items():
        missing = [version for version in found if version not in versions]
        print(f"{name:50} {'everywhere' if not missing else 'not in ' + ', '.join(missing)}")


if __name__ == "__main__":
    main()
