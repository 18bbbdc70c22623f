"""Exported graphs: checked, self-contained, and failures that name the layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from hwloop.compress.export import check_deployed, check_outputs, export_onnx, host_run
from hwloop.errors import CandidateError


class Awkward(nn.Module):
    """A layer that the exporter cannot translate."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x[0, 0]).real


class Failing(nn.Module):
    """A layer whose own forward fails."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such luck")


def test_equal_biases_become_initializers_of_their_own() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
    for child in module:
        nn.init.zeros_(child.bias)
    graph = onnx.load_from_string(export_onnx(module, torch.zeros(1, 1, 8, 8))).graph
    assert not [node for node in graph.node if node.op_type == "Identity"]
    names = {weight.name for weight in graph.initializer}
    assert all(node.input[2] in names for node in graph.node if node.op_type == "Conv")


def test_the_layer_that_cannot_be_exported_is_named() -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 1), Awkward())
    with pytest.raises(CandidateError, match=r"export: layer '1'"):
        export_onnx(module, torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("layers", "path"),
    [
        ([nn.Conv2d(1, 2, 1), nn.Sequential(nn.AdaptiveAvgPool2d(3)), nn.ReLU()], "1.0"),
        ([nn.Conv2d(1, 2, 1), Failing(), nn.ReLU()], "1"),
    ],
)
def test_the_layer_that_is_named_is_not_the_last_one_that_ran(
    layers: list[nn.Module], path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    module = nn.Sequential(*layers)
    with pytest.raises(CandidateError, match=f"layer '{path}'") as caught:
        export_onnx(module, torch.zeros(1, 1, 4, 4))
    assert "\n" not in str(caught.value)
    # The exporter prints the whole graph when it fails; standard output belongs to the command.
    assert capfd.readouterr() == ("", "")


def test_a_failed_export_leaves_nothing_behind() -> None:
    before = torch._C._jit_onnx_log
    module = nn.Sequential(Awkward())
    with pytest.raises(CandidateError):
        export_onnx(module, torch.zeros(1, 1, 4, 4))
    assert torch._C._jit_onnx_log is before
    assert not module._forward_pre_hooks
    assert not module._forward_hooks


def test_other_outputs_fail_the_check() -> None:
    module, example = nn.Linear(4, 3), torch.zeros(1, 4)
    with torch.no_grad():
        right = lambda inputs: module(torch.from_numpy(inputs)).detach().numpy()  # noqa: E731
        assert check_outputs(module, example, right) < 1e-6
        with pytest.raises(CandidateError, match="differ"):
            check_outputs(module, example, lambda inputs: right(inputs) * 1.01)
        with pytest.raises(CandidateError, match="finite"):
            check_outputs(module, example, lambda inputs: right(inputs) * np.nan)


def test_the_deployed_graph_must_be_finite_and_in_fp16_close() -> None:
    example = torch.zeros(1, 4)
    right = host_run(export_onnx(nn.Linear(4, 3), example))
    off = lambda inputs: right(inputs) * 1.5  # noqa: E731
    assert check_deployed(example, right, right, int8=False) == 0
    assert check_deployed(example, right, off, int8=True) == pytest.approx(0.5)
    with pytest.raises(CandidateError, match=r"check: FP16 and FP32 differ by 5\.0e-01"):
        check_deployed(example, right, off, int8=False)
    for int8 in (True, False):
        with pytest.raises(
            CandidateError, match="check: the deployed graph's output is not finite"
        ):
            check_deployed(example, right, lambda inputs: right(inputs) * np.inf, int8=int8)


def test_the_host_runs_batches_of_the_exported_size() -> None:
    module = nn.Linear(4, 3)
    inputs = torch.randn(6, 4)
    with torch.no_grad():
        expected = module(inputs).numpy()
    for size in (1, 2):
        run = host_run(export_onnx(module, torch.zeros(size, 4)))
        assert np.allclose(run(inputs.numpy()), expected, atol=1e-6)
