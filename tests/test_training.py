"""Gradient steps: in bfloat16, where they are taken and what they leave; and what undoes them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwloop.compress import bfloat16, training
from hwloop.compress.bfloat16 import rounds_little, suits_bfloat16
from hwloop.compress.training import WORSE, Schedule, train


@dataclass(frozen=True, kw_only=True, eq=False)
class Imitation:
    """Answers of another network, by the mean square of what is missed."""

    inputs: Tensor
    teacher: Tensor

    def loss(self, outputs: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs, self.teacher)


class MixesTypes(nn.Module):
    """Writes into a buffer that it makes itself, as real code does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.zeros(len(x), 4)
        rows.index_copy_(0, torch.arange(len(x)), self.layer(x))
        return rows


@pytest.fixture(autouse=True)
def bfloat16_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16", lambda: True)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


def damaged(dense: nn.Module, share: float = 0.5) -> nn.Module:
    module = copy.deepcopy(dense)
    with torch.no_grad():
        module.get_submodule("2").get_parameter("weight").mul_(share)
    return module


def lesson(dense: nn.Module) -> Imitation:
    inputs = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Imitation(inputs=inputs, teacher=dense(inputs))


def suits(module: nn.Module, taught: Imitation) -> bool:
    return suits_bfloat16(module, lambda: (taught.inputs, taught.teacher))


def test_a_damaged_network_is_trained_in_bfloat16_and_stays_in_float32() -> None:
    dense = network()
    module, taught = damaged(dense), lesson(dense)
    seen: list[torch.dtype] = []
    module.get_submodule("0").register_forward_hook(lambda *call: seen.append(call[2].dtype))
    before = taught.loss(module(taught.inputs)).item()
    seen.clear()
    train(module, Schedule(steps=60), lambda step: taught, lambda *_: None, frozen=False)
    assert seen.count(torch.bfloat16) > seen.count(torch.float32) == 1  # to compare, once
    assert taught.loss(module.eval()(taught.inputs)).item() < 0.1 * before
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_code_that_mixes_types_is_trained_in_float32() -> None:
    dense = MixesTypes()
    module, taught = copy.deepcopy(dense), lesson(dense)
    with torch.no_grad():
        module.layer.weight.mul_(0.5)
    assert not suits(module, taught)
    train(module, Schedule(steps=5), lambda step: taught, lambda *_: None, frozen=False)


class MixesTypesInTraining(MixesTypes):
    """In eval mode any type would do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.layer(x)


def test_code_that_mixes_types_in_training_alone_is_trained_in_float32() -> None:
    dense = MixesTypesInTraining().eval()
    module, taught = copy.deepcopy(dense), lesson(dense)
    with torch.no_grad():
        module.layer.weight.mul_(0.5)
    assert not suits(module, taught)


def test_trying_draws_no_random_numbers() -> None:
    dense = network()
    module = nn.Sequential(damaged(dense), nn.Dropout(0.5))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert suits(module, lesson(dense))
    assert torch.equal(torch.rand(4), expected)


def test_what_diverges_in_bfloat16_is_trained_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    real = training._losses
    tried: list[bool] = []

    def losses(*arguments: Any, bfloat16: bool, frozen: bool) -> list[float] | None:
        tried.append(bfloat16)
        found = real(*arguments, bfloat16=bfloat16, frozen=frozen)
        return None if bfloat16 else found

    monkeypatch.setattr(training, "_losses", losses)
    dense = network()
    module, taught = damaged(dense), lesson(dense)
    train(module, Schedule(steps=5), lambda step: taught, lambda *_: None, frozen=False)
    assert tried == [True, True, True, False]


def test_what_is_nearly_right_is_trained_in_float32() -> None:
    """Less is left to learn than bfloat16 rounds off."""
    dense = network()
    assert suits(damaged(dense), lesson(dense))
    assert not suits(damaged(dense, 0.999), lesson(dense))


def test_a_processor_without_its_instructions_trains_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16", lambda: False)
    dense = network()
    assert not suits(damaged(dense), lesson(dense))


def test_training_that_helped_is_kept_where_its_last_batches_are_the_harder_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16", lambda: False)
    torch.manual_seed(0)
    dense = nn.Linear(12, 4)
    module = copy.deepcopy(dense)
    with torch.no_grad():
        module.weight.mul_(0.97)
    before = torch.dist(module.weight, dense.weight)
    losses: list[float] = []

    def louder(step: int) -> Imitation:
        inputs = torch.randn(64, 12) * (1 + step)
        taught = Imitation(inputs=inputs, teacher=dense(inputs).detach())
        losses.append(taught.loss(module(inputs)).item())
        return taught

    schedule = Schedule(steps=20, peak_lr=1e-5, weight_decay=0.0)
    train(module, schedule, louder, lambda *_: None, frozen=False)
    assert sum(losses[15:20]) > WORSE * sum(losses[:5])
    assert torch.dist(module.weight, dense.weight) < before


def test_a_teacher_answers_in_bfloat16_where_that_changes_little() -> None:
    inputs = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    assert rounds_little(network(), inputs)
    far = network()
    with torch.no_grad():  # answers that hardly differ, far from zero
        far.get_submodule("2").get_parameter("bias").add_(100.0)
    assert not rounds_little(far, inputs)
    assert not rounds_little(MixesTypes(), inputs)


def test_without_its_instructions_a_teacher_answers_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16", lambda: False)
    assert not rounds_little(network(), torch.randn(64, 12))


@pytest.mark.parametrize(
    ("norms", "expected"),
    [((), "SGD"), ((nn.LayerNorm,), "AdamW"), ((nn.LayerNorm, nn.BatchNorm1d), "SGD")],
)
def test_networks_of_layer_norms_are_trained_by_adamw(
    monkeypatch: pytest.MonkeyPatch, norms: tuple[type, ...], expected: str
) -> None:
    used: list[str] = []
    for name in ("SGD", "AdamW"):
        real = getattr(torch.optim, name)

        def made(*given: Any, name: str = name, real: Any = real, **named: Any) -> Any:
            used.append(name)
            return real(*given, **named)

        monkeypatch.setattr(torch.optim, name, made)
    dense = nn.Sequential(*(norm(12) for norm in norms), network()).eval()
    module = copy.deepcopy(dense)
    train(module, Schedule(steps=5), lambda step: lesson(dense), lambda *_: None, frozen=False)
    assert set(used) == {expected}
