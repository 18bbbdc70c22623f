"""A task that the whole command finishes in seconds: 8x8 images of four classes, a small ResNet.

``--task tests/tiny.py:TinyTask``. The convolutions are random and the classifier is solved in
closed form, so the network scores well without any training and is the same in every process.
Also the two ways in which tests run the command: :func:`hwloop` and :func:`inside`.
"""

from __future__ import annotations

import copy
import functools
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hwloop.task import ClassificationTask
from hwloop.tasks.splits import TensorSplit

if TYPE_CHECKING:
    import pytest  # a process of its own reads this file for the task, and needs no more

HERE = Path(__file__).resolve().parent
SPEC = f"{HERE / 'tiny.py'}:TinyTask"
MINI = f"{HERE / 'tiny.py'}:MiniTask"
START = (sys.executable, "-c", "from hwloop.cli import run; run()")
ON_FAKE = ("--task", MINI, "--target", "fake")
SMALL = (*ON_FAKE, "--agent", "random", "--evaluations", "4", "--loop-steps", "1")
SMALL = (*SMALL, "--final-steps", "2", "--finalists", "1", "--max-drop", "none")
SMALL = (*SMALL, "--min-speedup", "1.05")

CLASSES = 4
CHANNELS = 16
COUNTS = {"train": 256, "search": 128, "test": 128}
NOISE = 0.9
RIDGE = 1e-2


class TinyBlock(nn.Module):
    """Two 3x3 convolutions and the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu(x + out)
        return result


class TinyNet(nn.Module):
    """Images (N, 1, 8, 8) in, logits (N, 4) out; three groups of 16 channels and the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU()
        self.block1 = TinyBlock()
        self.block2 = TinyBlock()
        self.pool = nn.MaxPool2d(4)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(CHANNELS * 4, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.relu(self.bn(self.conv(x)))))
        out: Tensor = self.flatten(self.pool(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.features(x))
        return out


class TinyTask(ClassificationTask):
    """256 training, 128 search and 128 test images."""

    name = "tiny"

    def model(self) -> nn.Module:
        return network()

    def example(self) -> Tensor:
        return self.search().batch([0])[0]

    def train(self) -> TensorSplit:
        return split("train")

    def search(self) -> TensorSplit:
        return split("search")

    def test(self) -> TensorSplit:
        return split("test")


@functools.cache
def split(part: str, times: int = 1) -> TensorSplit:
    """A fixed pattern per class, under noise; ``times`` as many samples."""
    patterns = torch.randn(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    seed = 2 + list(COUNTS).index(part)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(COUNTS[part] * times) % CLASSES
    noise = torch.randn(COUNTS[part] * times, 1, 8, 8, generator=generator)
    return TensorSplit(patterns[labels] + NOISE * noise, labels)


class MiniNet(TinyNet):
    """The same without blocks: two groups, for tests of what surrounds a run."""

    def __init__(self) -> None:
        super().__init__()
        del self.block1
        self.block2 = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
        )

    def features(self, x: Tensor) -> Tensor:
        x = self.block2(self.relu(self.bn(self.conv(x))))
        out: Tensor = self.flatten(self.pool(x))
        return out


class MiniTask(TinyTask):
    """With 256 search samples, which raise no doubts."""

    name = "mini"

    def model(self) -> nn.Module:
        return network(MiniNet)

    def search(self) -> TensorSplit:
        return split("search", 2)


def network(kind: type[TinyNet] = TinyNet) -> TinyNet:
    """The same weights every time; the caller's random state is left alone."""
    return copy.deepcopy(solved(kind))


@functools.cache
def solved(kind: type[TinyNet]) -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = kind()
    inputs, labels = split("train").batch(range(COUNTS["train"]))
    with torch.no_grad():
        norms = [child for child in net.modules() if isinstance(child, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None
        net.train()
        net.features(inputs)
        for norm in norms:
            norm.momentum = 0.1
        net.eval()
        found = net.features(inputs)
        wanted = nn.functional.one_hot(labels, CLASSES).float() - 1 / CLASSES
        centre = found.mean(dim=0)
        found = found - centre
        gram = found.T @ found + RIDGE * len(inputs) * torch.eye(found.shape[1])
        weight = torch.linalg.solve(gram, found.T @ wanted)
        net.fc.weight.copy_(8 * weight.T)
        net.fc.bias.copy_(-8 * (centre @ weight))
    return net


# --------------------------------------------------------------------------- the command


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


def environment(**extra: str) -> dict[str, str]:
    """For a process that finds hwloop also where it is not installed."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **extra}


def hwloop(*arguments: str | Path, **options: str) -> Said:
    """Run the command in a process of its own; options are added to its environment."""
    done = subprocess.run(
        [*START, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(**options),
        check=False,
    )
    return Said(code=done.returncode, out=done.stdout, err=done.stderr)


def inside(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Said:
    """Run the command in this process, which has imported torch already."""
    from hwloop.cli import main as cli

    numbers = (signal.SIGINT, signal.SIGTERM)
    argv, handlers = sys.argv, [signal.getsignal(number) for number in numbers]
    sys.argv = ["hwloop", *map(str, arguments)]
    capsys.readouterr()
    try:
        cli.run()
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        sys.argv = argv
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    said = capsys.readouterr()
    return Said(code=code, out=said.out, err=said.err)


def is_refused(said: Said, *parts: str) -> None:
    """One sentence on what is wrong, one line on what to do."""
    assert said.code == 2, said.err or said.out
    assert said.out == ""
    lines = said.err[said.err.index("hwloop: ") :].splitlines()
    assert len(lines) == 2, said.err
    assert lines[1].startswith("  fix: ")
    assert all(part in said.err for part in parts), said.err


def profile(path: Path, body: str = "") -> Path:
    """A fake target with short deadlines; ``body`` is added to its TOML."""
    head = 'description = "test"\nruntime = "fake"\n[space]\nalign = 8\n'
    head += "[timeouts]\nbuild_s = 5\ncall_s = 2\n"
    for stage in ("row", "loop", "final"):
        head += f"[protocol.{stage}]\nwarmup_s = 0.01\ntime_limit_s = 0.01\n"
    path.write_text(head + body)
    return path


def faulty(path: Path, verb: str, kind: str, *, after: int = 1, times: int = 1 << 30) -> Path:
    """A fake target whose worker fails at ``verb``; see hwloop.device.fake."""
    fault = f'{{kind = "{kind}", after = {after}, times = {times}}}'
    return profile(path, f"[settings.faults]\n{verb} = {fault}\n")
