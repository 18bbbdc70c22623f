"""A layer whose inputs were cut is still made cheaper by what the others of them are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hwloop.compress.apply import compress
from hwloop.compress.export import export_onnx
from hwloop.compress.methods.method import Work
from hwloop.compress.moments import input_moments
from hwloop.compress.rules import SpaceRules
from hwloop.compress.sizes import described
from hwloop.records import Action, Candidate

RULES = SpaceRules(
    recipe="tensorrt", kinds=("keep", "prune", "lowrank", "sparse"), base_precision="fp32"
)
HALF = Action(kind="prune", amount=0.5)


def test_moments_of_what_stays_are_those_of_its_channels() -> None:
    torch.manual_seed(0)
    batch = torch.randn(64, 8)
    whole = input_moments(nn.Sequential(nn.Linear(8, 2)), [batch])["0"]
    part = input_moments(nn.Sequential(nn.Linear(5, 2)), [batch[:, [0, 2, 3, 6, 7]]])["0"]
    left = whole.without([1, 4, 5])
    torch.testing.assert_close(left.mean, part.mean)
    torch.testing.assert_close(left.covariance, part.covariance)


@pytest.mark.parametrize("kind", ["lowrank", "sparse"])
def test_inputs_that_stay_say_what_the_next_method_keeps(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(6, 256, 1), nn.ReLU(), nn.Conv2d(256, 128, 1)).eval()
    batch = torch.randn(32, 6, 8, 8)
    network = described(dense, batch[:1], export_onnx(dense, batch[:1]), name="net", rules=RULES)
    candidate = Candidate(actions=(HALF, Action(kind=kind, amount=0.5)))

    def error() -> float:
        moments = input_moments(dense, [batch])
        made = compress(
            dense, batch[:1], network, candidate=candidate, rules=RULES, moments=moments
        )
        with torch.no_grad():
            expected = dense(batch)
            return float((made(batch) - expected).norm() / expected.norm())

    by_inputs = error()
    monkeypatch.setattr(Work, "given", lambda self, path: None)
    assert by_inputs < 0.7 * error()
