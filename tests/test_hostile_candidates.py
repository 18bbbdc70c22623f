"""The best network of a run folder from somebody else: its note, and its weights."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from strangers import BEST, Alter, Capsys, edit, everything
from strangers import plain_fixture as plain_fixture
from strangers import quick_fixture as quick_fixture
from strangers import run_fixture as run_fixture
from tiny import TinyNet, TinyTask

import hwloop
from hwloop.errors import ExitCode
from hwloop.files import sha256


def weights(data: bytes) -> Alter:
    """Other weights, under their right digest."""

    def alter(run: Path) -> None:
        (run / "best" / "model.safetensors").write_bytes(data)
        edit(run / BEST, safetensors_sha256=sha256(data))

    return alter


def note(**changes: Any) -> Alter:
    return lambda run: edit(run / BEST, **changes)


def header(text: str, data: bytes = b"", length: int | None = None) -> Alter:
    head = text.encode()
    return weights(struct.pack("<Q", len(head) if length is None else length) + head + data)


def entry(dtype: str, shape: list[Any], start: int, end: int) -> str:
    about = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return json.dumps({"conv.weight": about})


def reshaped(run: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
    from safetensors.torch import load

    kept = load((run / "best" / "model.safetensors").read_bytes())
    return bytes(save({name: change(value).contiguous() for name, value in kept.items()}))


def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Alter:
    return lambda run: weights(reshaped(run, change))(run)


def actions(*values: dict[str, Any]) -> Alter:
    full = [{"kind": "keep", "amount": 1.0, "precision": "base", **value} for value in values]
    return note(candidate={"actions": full})


def both(*alters: Alter) -> Alter:
    def alter(run: Path) -> None:
        for each_of_them in alters:
            each_of_them(run)

    return alter


KEPT: dict[str, Any] = {}
HALVED: dict[str, Any] = {"kind": "prune", "amount": 0.5}
CANDIDATES: dict[str, Alter] = {
    "align 0": note(align=0),
    "align 1024": both(note(align=1024), actions(*[HALVED] * 3, KEPT)),
    "align 1e308": note(align=1e308),
    "align true": note(align=True),
    "huge input": note(input_shape=[1, 1, 100_000, 100_000]),
    "large input": note(input_shape=[1, 1, 16_000, 16_000]),
    "many inputs": note(input_shape=[1 << 20, 1, 8, 8]),
    "other channels": note(input_shape=[1, 3, 8, 8]),
    "no input": note(input_shape=[]),
    "negative input": note(input_shape=[-1, 1, 8, 8]),
    "text as input": note(input_shape=["x", 1]),
    "small input": note(input_shape=[1, 1, 1, 1]),
    "flat input": note(input_shape=[1, 64]),
    "six dimensions": note(input_shape=[1] * 6),
    "no actions": actions(),
    "too few actions": actions(KEPT, KEPT),
    "too many actions": actions(*[KEPT] * 5),
    "very many actions": actions(*[KEPT] * 20_000),
    "an unknown amount": actions(*[{"kind": "prune", "amount": 0.3}] * 4),
    "an unknown kind": actions(*[{"kind": "exec"}] * 4),
    "what nothing can do": actions(*[{"kind": "sparse24", "amount": 0.5}] * 4),
    "the classifier pruned": actions(*[{"kind": "prune", "amount": 0.25}] * 4),
    "the classifier left out": actions(*[{"kind": "drop"}] * 4),
    "everything kept": actions(*[KEPT] * 4),
    "all int8": actions(*[{"precision": "int8"}] * 4),
    "another digest": note(safetensors_sha256="0" * 64),
    "no digest": note(safetensors_sha256=None),
    "scalars": each(lambda value: value.reshape(-1)[:1]),
    "one dimension more": each(lambda value: value[None]),
    "integers": each(lambda value: value.to(torch.int64)),
    "truth values": each(lambda value: value > 0),
    "halves": each(lambda value: value.half() if value.is_floating_point() else value),
    "complex": each(lambda value: value.to(torch.complex64)),
    "not finite": each(lambda value: value * float("nan") if value.is_floating_point() else value),
    "no tensors": lambda run: weights(bytes(save({})))(run),
    "other names": lambda run: weights(bytes(save({"x": torch.zeros(1)})))(run),
    "nothing": weights(b""),
    "a lying length": header("{}", length=(1 << 63) - 1),
    "a length of 2^64": header("{}", length=(1 << 64) - 1),
    "a longer length": header("{}", length=1000),
    "no header": header("[1]"),
    "a deep header": header("[" * 100_000),
    "an unknown type": header(entry("F9", [1], 0, 4), b"\0" * 4),
    "a type of four bits": header(entry("F4", [2], 0, 1), b"\0"),
    "too many values": header(entry("F32", [1 << 40], 0, 4), b"\0" * 4),
    "an overflow": header(entry("F32", [1 << 62, 1 << 62], 0, 0)),
    "no values": header(entry("F32", [0], 0, 0)),
    "backwards": header(entry("F32", [1], 4, 0), b"\0" * 4),
    "beyond the end": header(entry("F32", [1], 0, 1 << 40), b"\0" * 4),
    "a hole": header(entry("F32", [1], 4, 8), b"\0" * 8),
    "a negative size": header(entry("F32", [-1], 0, 4), b"\0" * 4),
}
MAY_LOAD = {"not finite", "all int8", "small input"}


@pytest.mark.parametrize("case", CANDIDATES)
def test_a_candidate_that_cannot_be_is_refused(case: str, run: Path, capsys: Capsys) -> None:
    CANDIDATES[case](run)
    codes = everything(run, capsys, names=())
    assert case in MAY_LOAD or set(codes.values()) == {ExitCode.USAGE}, codes


def test_another_network_than_the_run_s_is_refused(run: Path) -> None:
    class Wider(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 24, 3, padding=1, bias=False)
            self.bn = torch.nn.BatchNorm2d(24)

    for model in (Wider, torch.nn.Linear(64, 4), torch.nn.Identity(), lambda: torch.nn.Flatten()):
        with pytest.raises(hwloop.UsageError):
            hwloop.load(run, model=model)


def test_a_cache_that_is_gone_is_made_anew(run: Path, capsys: Capsys) -> None:
    for path in run.glob("candidates/*.safetensors"):
        path.unlink()
    (run / "best").unlink()
    shutil.rmtree(next(path for path in (run / "candidates").iterdir() if path.is_dir()))
    assert everything(run, capsys, names=("optimize",))["optimize"] == 0
    assert isinstance(hwloop.load(run, task=TinyTask), torch.nn.Module)
