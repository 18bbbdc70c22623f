"""What a network is taught in each step: a batch, and the dense network's answers to it.

The batches are a fixed, seeded sequence of shuffled epochs. The first epoch's answers are kept, and
later epochs are answered from them: batches that were the same in every epoch would need no more,
but leave candidates a tenth of a point worse.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwloop.compress.bfloat16 import TRIED, outputs_of, rounds_little
from hwloop.compress.layout import channels_last, suits_channels_last
from hwloop.tasks.calls import call_user
from hwloop.tasks.splits import Split, repeats, seeded

MOST_BYTES = 2**28
"""Of the dense network's answers that are kept; maps, and those to many samples, are larger."""

FEW = 2
"""Samples that tell how large answers are, and whether another order in memory suits."""


class Batches:
    """The seeded sequence of shuffled epochs that a split is read in."""

    def __init__(self, split: Split, *, seed: int, task_name: str) -> None:
        self.split = split
        self.seed = seed
        self._what = f"the train split of {task_name}"
        self._order = np.empty(0, dtype=np.int64)
        self._epochs = 0

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.split)

    def order(self, count: int) -> NDArray[np.int64]:
        """The first so many indices of the sequence."""
        while len(self._order) < count:
            rng = np.random.default_rng([self.seed, self._epochs])
            self._order = np.concatenate([self._order, rng.permutation(len(self.split))])
            self._epochs += 1
        return self._order[:count]

    def indices(self, step: int, size: int) -> NDArray[np.int64]:
        """Of the samples that a step is given."""
        return self.order((step + 1) * size)[step * size :]

    def of(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, the same whenever they are taken.

        What a split draws at random, as augmentation does, is drawn anew for each step alone.
        """
        return self.read(self.indices(step, size), draw=step)

    def read(self, indices: NDArray[np.int64], *, draw: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some samples; chance starts from the seed and ``draw``."""
        with seeded(self.seed + draw):
            return call_user(self.split.batch, indices, what=self._what)

    @cached_property
    def repeat(self) -> bool:
        """Whether a sample is the same whenever it is read."""
        return call_user(repeats, self.split, what=self._what)


class Teacher:
    """The dense network's answers, each computed once where they can be kept.

    An answer's last bits depend on what else is in its batch. So it is always computed in the batch
    of the first epoch that its sample is in, and a run that goes on finds the same.
    """

    def __init__(self, dense: nn.Module, batches: Batches) -> None:
        self.dense = dense
        self.batches = batches
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._bytes = 0
        self._epochs: dict[int, Tensor] = {}

    def answers(self, step: int, inputs: Tensor) -> Tensor:
        """To the inputs of a step."""
        size = len(inputs)
        is_later = (step + 1) * size > len(self.batches)
        if size in self._epochs or (is_later and self._keeps_epochs):
            return self._epoch(size)[self._places[self.batches.indices(step, size)]]
        found = self._kept.get((step, size))
        if found is None:
            found = self._asked(inputs)
            if self._bytes + found.nbytes <= MOST_BYTES:
                self._kept[step, size] = found
                self._bytes += found.nbytes
        return found

    def _epoch(self, size: int) -> Tensor:
        """The answers to all batches of the first epoch, in its order."""
        if size not in self._epochs:
            order = self.batches.order(len(self.batches))
            parts = []
            for step, start in enumerate(range(0, len(order), size)):
                found = self._kept.pop((step, size), None)
                if found is None or start + size > len(order):
                    inputs = self.batches.read(order[start : start + size], draw=step)[0]
                    found = self._asked(inputs)
                parts.append(found)
            self._epochs[size] = torch.cat(parts)
        return self._epochs[size]

    @cached_property
    def _keeps_epochs(self) -> bool:
        """Whether later epochs ask for the same again, and there is room for all of it."""
        few = self._asked(self.batches.of(0, FEW)[0])
        room = few.nbytes * len(self.batches) <= MOST_BYTES * len(few)
        return room and self.batches.repeat

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Of each sample in the first epoch."""
        return np.argsort(self.batches.order(len(self.batches)))

    def _asked(self, inputs: Tensor) -> Tensor:
        self.dense.eval()
        with torch.no_grad(), channels_last(self.dense, suits=self.suits_channels_last):
            return outputs_of(self.dense, inputs, bfloat16=self._answers_in_bfloat16)

    @cached_property
    def suits_channels_last(self) -> bool:
        """Whether it, and what is made of it, may be trained in that order."""
        return suits_channels_last(self.dense, self.batches.of(0, FEW)[0])

    @cached_property
    def _answers_in_bfloat16(self) -> bool:
        return rounds_little(self.dense, self.batches.of(0, TRIED)[0])
