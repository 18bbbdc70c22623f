"""How the bundled demo was made: train ResNet-20 on Fashion-MNIST and cut the bundled subset.

    python -m hwloop.tasks.demo.train --data FOLDER --out hwloop/tasks/demo
    python -m hwloop.tasks.demo.train --data FOLDER --only-data     # data.npz alone

FOLDER holds the four IDX files of Fashion-MNIST (``apt-get install dataset-fashion-mnist`` puts
them under /usr/share/datasets/fashion-mnist). 8,000 of the 60,000 training images are set aside
first, for the search split, so that the network has seen neither them nor the test images. The
test split is Fashion-MNIST's own, whole: the sizes of both decide how surely a network is within
a goal.
Writes ``weights.safetensors``, ``data.npz`` and ``training.json`` (the log, with seed and scores).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hwloop.tasks.cut import SEED, Bytes, search_cut, stratified
from hwloop.tasks.demo.data import MEAN, STD, normalised, read_idx
from hwloop.tasks.demo.network import ResNet20

EPOCHS = 8
BATCH_SIZE = 128
PEAK_LR = 0.2
WEIGHT_DECAY = 5e-4
BUNDLED = 12_000  # of the images that it is trained on, as many as a wheel can bear


def augmented(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Flip half of the images and shift each by up to two pixels."""
    flip = torch.rand(len(batch), generator=generator) < 0.5
    batch = torch.where(flip[:, None, None, None], batch.flip(3), batch)
    padded = nn.functional.pad(batch, (2, 2, 2, 2), value=-MEAN / STD)
    rows = torch.randint(0, 5, (len(batch), 1), generator=generator) + torch.arange(28)
    cols = torch.randint(0, 5, (len(batch), 1), generator=generator) + torch.arange(28)
    index = torch.arange(len(batch))[:, None, None]
    return padded[index, 0, rows[:, :, None], cols[:, None, :]].unsqueeze(1)


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    model.eval()
    hits = 0
    for start in range(0, len(inputs), 500):
        logits = model(inputs[start : start + 500])
        hits += int((logits.argmax(1) == labels[start : start + 500]).sum())
    return hits / len(inputs)


def train(
    model: nn.Module, inputs: Tensor, labels: Tensor, evaluate: Any
) -> list[dict[str, float]]:
    """One-cycle SGD with cross-entropy; returns one log record per epoch."""
    steps_per_epoch = len(inputs) // BATCH_SIZE
    optimizer = torch.optim.SGD(
        model.parameters(), PEAK_LR, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LR, total_steps=EPOCHS * steps_per_epoch, pct_start=0.25
    )
    generator = torch.Generator().manual_seed(SEED)
    log = []
    for epoch in range(EPOCHS):
        started = time.monotonic()
        model.train()
        order = torch.randperm(len(inputs), generator=generator)
        total = 0.0
        for step in range(steps_per_epoch):
            chosen = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            batch = augmented(inputs[chosen], generator).to(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(model(batch), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        record = {
            "epoch": epoch + 1,
            "train_loss": round(total / steps_per_epoch, 4),
            "search_accuracy": evaluate(model),
            "wall_s": round(time.monotonic() - started, 1),
        }
        print(json.dumps(record), flush=True)
        log.append(record)
    return log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only-data", action="store_true", help="Write data.npz and do not train.")
    options = parser.parse_args()

    torch.manual_seed(SEED)
    images, labels = read_idx(options.data, "train")
    test_images, test_labels = read_idx(options.data, "t10k")
    rng = np.random.default_rng(SEED)
    search, rest = search_cut(labels, rng, where=options.data)
    bundled = rest[stratified(labels[rest], BUNDLED, rng)]
    np.savez_compressed(
        options.out / "data.npz",
        train_images=images[bundled],
        train_labels=labels[bundled],
        search_images=images[search],
        search_labels=labels[search],
        test_images=test_images,
        test_labels=test_labels,
    )
    if options.only_data:
        return
    model = ResNet20().to(memory_format=torch.channels_last)
    searched = normalised(images[search]), targets(labels[search])
    log = train(
        model,
        normalised(images[rest]),
        targets(labels[rest]),
        lambda net: accuracy(net, *searched),
    )
    scores = {
        "test_accuracy": accuracy(model, normalised(test_images), targets(test_labels)),
        "search_accuracy": accuracy(model, *searched),
    }
    write_trained(options.out, model, trained_on=len(rest), scores=scores, log=log)
    print(json.dumps(scores))


def targets(labels: Bytes) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def write_trained(
    folder: Path,
    model: nn.Module,
    *,
    trained_on: int,
    scores: dict[str, float],
    log: list[dict[str, float]],
) -> None:
    """The weights, and how they came to be."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    record = {
        "command": "python -m hwloop.tasks.demo.train",
        "seed": SEED,
        "train_images": trained_on,
        "recipe": f"SGD one-cycle, peak lr {PEAK_LR}, {EPOCHS} epochs, batch {BATCH_SIZE}",
        "torch": torch.__version__,
        "scores": scores,
        "epochs": log,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
