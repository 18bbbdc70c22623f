"""From an ``nn.Module`` to ONNX bytes, and the checks that every exported graph must pass."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwloop.compress.graph_fixes import copy_shared_weights, write_padding
from hwloop.compress.noise import noise_like
from hwloop.errors import CandidateError, EnvironmentProblem, UsageError
from hwloop.runtimes.graph import INPUT, OPSET, OUTPUT
from hwloop.runtimes.host import open_on_cpu
from hwloop.tasks.calls import LONGEST_MESSAGE, is_users

MAX_RELATIVE_DIFFERENCE = 1e-4
MAX_FP16_DIFFERENCE = 0.2
CHECK_INPUTS = 4
MOST_LINES = 3


def export_onnx(module: nn.Module, example: Tensor) -> bytes:
    """Export with batch-norms folded into convolutions and all shapes fixed by ``example``.

    Args:
        module: the network, in any mode; it is exported in eval mode and left in eval mode.
        example: input of the deployed shape, usually (1, C, H, W).

    Raises:
        CandidateError: stage ``export``, with the operator or the module that cannot be exported.
    """
    return _exported(module, example)[0]


def value_dependent_lines(module: nn.Module, example: Tensor) -> tuple[str, ...]:
    """``file:line`` of the user's lines that depend on values of a tensor, each once, as they ran.

    Such a line is an ``if`` or a ``for`` over what a tensor holds: the exporter follows ``example``
    through it, and what the line did for that input becomes part of the graph. Some are harmless:
    to the exporter a tensor's shape is made of values too.

    Raises CandidateError as :func:`export_onnx` does.
    """
    _, warned = _exported(module, example)
    places = [f"{warning.filename}:{warning.lineno}" for warning in warned]
    return tuple(place for place in dict.fromkeys(places) if is_users(place))


def _exported(module: nn.Module, example: Tensor) -> tuple[bytes, list[warnings.WarningMessage]]:
    """The graph, and the tracer's warnings."""
    buffer: Any = io.BytesIO()  # the exporter writes to file objects; its annotation forgot them
    module.eval()
    inside = _InnermostModule(module)
    with _quiet() as (printed, warned), inside, torch.no_grad():
        try:
            torch.onnx.export(
                module,
                (example,),
                buffer,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=False,
            )
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            message = _explain(error, inside.where, "".join(printed))
            raise CandidateError("export", message) from error
    model = onnx.load_from_string(buffer.getvalue())
    copy_shared_weights(model.graph)
    model = onnx.shape_inference.infer_shapes(model)
    write_padding(model)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString()), warned


def check_outputs(
    module: nn.Module, example: Tensor, run: Callable[[NDArray[Any]], NDArray[Any]]
) -> float:
    """Largest difference between PyTorch's outputs and ``run``'s, relative to their scale.

    The scale is the largest absolute output, so that a logit near zero does not decide.

    Args:
        run: the exported FP32 graph: (N, ...) float32 inputs to its outputs.

    Raises:
        CandidateError: stage ``check``: not finite, or more than 1e-4 apart.
    """
    inputs = check_inputs(example)
    with torch.no_grad():
        expected = np.concatenate(
            [module(part).numpy() for part in torch.split(inputs, len(example))]
        )
    worst = _difference(expected, run(inputs.numpy()), "the network")
    if worst > MAX_RELATIVE_DIFFERENCE:
        raise CandidateError("check", f"ONNX and PyTorch differ by {worst:.1e} of the output")
    return worst


def check_exported(module: nn.Module, example: Tensor, graph: bytes, *, name: str) -> None:
    """Refuse a network whose exported graph computes something else than PyTorch does.

    The graph runs in this machine's ONNX Runtime; where there is none, nothing is checked.

    Args:
        graph: what :func:`export_onnx` made of ``module`` and ``example``.
        name: the network's, for the message.

    Raises:
        UsageError: they differ: the lines whose effect depends on values are named; or ONNX
            Runtime refuses the graph.
    """
    try:
        run = host_run(graph)
        check_outputs(module, example, run)
    except EnvironmentProblem:
        return
    except CandidateError as error:
        what = f"the exported network computes something else than PyTorch's {name}"
        lines = value_dependent_lines(module, example)
        if not lines:
            raise UsageError(
                f"{what}: {error.message.removeprefix('check: ')}",
                "give the same output for the same input: no random numbers, nothing kept from "
                "call to call, no layer in training mode",
            ) from error
        decide = "decides" if len(lines) == 1 else "decide"
        raise UsageError(
            f"{what}: {', '.join(lines[:MOST_LINES])} {decide} in Python what to compute, and "
            "ONNX keeps one branch only",
            "compute it without `if` and `for` over values, e.g. torch.where(condition, a, b)",
        ) from error
    except Exception as error:  # the runtime's own exceptions have no common base
        reason = " ".join(str(error).split())[:LONGEST_MESSAGE]
        raise UsageError(
            f"ONNX Runtime cannot run the exported {name}: {reason}", "replace that operator"
        ) from error


def check_deployed(
    example: Tensor,
    run_float: Callable[[NDArray[Any]], NDArray[Any]],
    run: Callable[[NDArray[Any]], NDArray[Any]],
    *,
    int8: bool,
) -> float:
    """Largest difference between the FP32 graph's outputs and those of the graph that ships.

    It finds overflow and broken kernels, not lost accuracy, which the task's metric tells. FP16
    moved the outputs of 13 torchvision networks with random weights by 0.1 % to 4.5 % of their
    scale on ONNX Runtime; kernels that add up in FP16 may double that, broken ones reach 100 %.

    Args:
        run_float, run: the FP32 graph and the final one.
        int8: it has quantized layers: only finiteness is checked, because how far int8 may be
            off depends on the network.

    Raises:
        CandidateError: stage ``check``: not finite, or FP16 more than 20 % apart.
    """
    inputs = check_inputs(example).numpy()
    worst = _difference(run_float(inputs), run(inputs), "the deployed graph")
    if worst > MAX_FP16_DIFFERENCE and not int8:
        raise CandidateError("check", f"FP16 and FP32 differ by {worst:.1e} of the output")
    return worst


def host_run(graph: bytes) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Run a graph on this machine's CPU, one input at a time.

    Raises:
        EnvironmentProblem: ONNX Runtime is not installed.
    """
    session = open_on_cpu(graph, needed_for="FP16 targets need")
    size = session.get_inputs()[0].shape[0]

    def run(inputs: NDArray[Any]) -> NDArray[Any]:
        parts = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        return np.concatenate([session.run(None, {INPUT: part})[0] for part in parts])

    return run


def check_inputs(example: Tensor) -> Tensor:
    """The seeded random inputs that graphs are compared on."""
    return noise_like(example, times=CHECK_INPUTS)


def _difference(expected: NDArray[Any], found: NDArray[Any], what: str) -> float:
    """The largest one, relative to the largest output, so that a logit near zero is none."""
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        raise CandidateError("check", f"{what}'s output is not finite")
    scale = max(float(np.abs(expected).max()), 1e-6)
    return float(np.abs(expected - found).max()) / scale


# ---------------------------------------------------------------------------------- errors


class _InnermostModule:
    """While active, ``where`` is the path of the module whose forward was entered last.

    It is empty when the network's own forward has returned.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.where = ""
        self.handles: list[Any] = []

    def __enter__(self) -> _InnermostModule:
        for name, child in self.module.named_modules():
            if not isinstance(child, torch.jit.ScriptModule):
                self.handles.append(child.register_forward_pre_hook(self._enter(name)))
        self.handles.append(self.module.register_forward_hook(self._leave))
        return self

    def __exit__(self, *unused: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            self.where = name

        return hook

    def _leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.where = ""


def _explain(error: BaseException, where: str, printed: str) -> str:
    text = str(error).strip().splitlines()
    first = text[0].partition("  [Caused by")[0] if text else type(error).__name__
    # Once traced, it is an operator that cannot be translated: the printed graph has its module.
    place = where or _module_of(first, printed)
    return f"layer {place!r}: {first}" if place else first


def _module_of(message: str, graph: str) -> str:
    """Path of the module whose operator ``message`` complains about, or nothing."""
    operator = re.search(r"operator '?(?:aten::)?(\w+)", message)
    found = operator and re.search(rf"aten::{operator.group(1)}\(.*?scope: (\S+)", graph)
    if not found:
        return ""
    # Class::name/Class::name/...; the children of a Sequential repeat the name of their parent.
    names = [part.rpartition("::")[2] for part in found.group(1).split("/")]
    pairs = zip(names, [*names[1:], ""], strict=True)
    return ".".join(name for name, child in pairs if name and not child.startswith(f"{name}."))


@contextmanager
def _quiet() -> Iterator[tuple[list[str], list[warnings.WarningMessage]]]:
    """Keep the exporter's talk away from the user.

    Yields what it would have printed, and the tracer's warnings.

    It warns on every call that it will be replaced (docs/decisions.md has why it is used), and on
    a failure it prints the whole graph on standard output, which is not ours to write to.
    """
    printed: list[str] = []
    core: Any = torch._C
    jit: Any = torch.jit  # its annotations do not tell of the warning
    original = getattr(core, "_jit_onnx_log", None)  # private: another torch may do without
    core._jit_onnx_log = lambda *values: printed.extend(map(str, values))
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", jit.TracerWarning)
            yield printed, warned
    finally:
        core._jit_onnx_log = original
