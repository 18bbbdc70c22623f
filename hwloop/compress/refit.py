"""Closed forms around a cut: which channels can be done without, and weights that make up for them.

Both look at the layers that read a group's channels. What such a layer loses with a channel is what
the channels that stay cannot say of it, by their covariance: so the channels go one after the other
by the least loss (optimal brain surgeon for whole channels: Frantar and Alistarh, NeurIPS 2022,
section 4; Hassibi and Stork, 1993), and what stays is fitted by least squares to say the most of
what went (He et al., ICCV 2017, section 3.1). Of a kernel's taps all are fitted alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwloop.compress.moments import Moments

RIDGE = 0.01
"""Of the mean variance, added to each: draws the fit towards weights that are merely cut."""

STAGES = 64
"""A wide group loses its channels in so many bunches."""

LEAST = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """A layer that reads a group's channels.

    Attributes:
        weight: (C_out, C_in, ...) of the layer.
        moments: of its inputs.
        inputs: (I,) which of its inputs come from the group.
        channels: (I,) the group's channel that each of them is of.
    """

    weight: Tensor
    moments: Moments
    inputs: Tensor
    channels: Tensor


def by_loss(readers: Sequence[Reader], channels: int) -> tuple[int, ...]:
    """A group's channels, the one that can be done without most easily last.

    Args:
        readers: at least one.
        channels: of the group.
    """
    states = [_Eliminated(reader) for reader in readers]
    alive = torch.ones(channels, dtype=torch.bool)
    removed: list[int] = []
    bunch = -(-channels // STAGES)
    while (left := channels - len(removed)) > 1:
        loss = torch.zeros(channels, dtype=torch.float64)
        for state in states:
            loss.index_add_(0, state.channels, state.losses())
        loss[~alive] = torch.inf
        gone = torch.argsort(loss, stable=True)[: min(bunch, left - 1)]
        alive[gone] = False
        removed += gone.tolist()
        for state in states:
            state.remove(gone)
    return (*torch.nonzero(alive).flatten().tolist(), *reversed(removed))


class _Eliminated:
    """One reader while channels go: its weights as they are refitted, and the inverse moments."""

    def __init__(self, reader: Reader) -> None:
        self.channels = reader.channels
        weight = reader.weight.detach().double().transpose(0, 1).flatten(1)
        self._weight = weight[reader.inputs].clone()
        covariance = reader.moments.covariance[reader.inputs][:, reader.inputs]
        self._inverse = torch.linalg.inv(_with_ridge(covariance))
        power = float((self._weight * (covariance @ self._weight)).sum())
        self._power = power if power > LEAST else 1.0

    def losses(self) -> Tensor:
        """(I,) share of the layer's output that is lost with each input alone."""
        found: Tensor = self._weight.pow(2).sum(1) / (self._inverse.diagonal() * self._power)
        return found

    def remove(self, channels: Tensor) -> None:
        gone = torch.nonzero(torch.isin(self.channels, channels)).flatten()
        if not len(gone):
            return
        step = torch.linalg.solve(self._inverse[gone][:, gone], self._inverse[gone])
        self._weight -= step.T @ self._weight[gone]
        self._inverse -= self._inverse[:, gone] @ step
        self._weight[gone] = 0.0
        self._inverse[gone], self._inverse[:, gone] = 0.0, 0.0
        self._inverse[gone, gone] = 1.0


def refit(layer: nn.Module, moments: Moments, removed: Sequence[int], *, normed: bool) -> None:
    """Fit a layer's weights to the inputs that stay, in place; those of the others are left.

    Args:
        layer: a convolution or a linear layer.
        removed: its inputs that will be cut.
        normed: a constant in the output is made up for later, by a batch norm.
    """
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    mean, gram = moments.mean, moments.covariance
    if bias is None and not normed:
        gram = gram + torch.outer(mean, mean)
    gone = torch.tensor(sorted(removed))
    stays = torch.ones(len(mean), dtype=torch.bool)
    stays[gone] = False
    if not bool(stays.any()):
        return
    said = torch.linalg.solve(_with_ridge(gram[stays][:, stays]), gram[stays][:, gone])
    lost = weight.detach().double()[:, gone]
    made_up = torch.einsum("kr,or...->ok...", said, lost)
    with torch.no_grad():
        weight[:, stays] += made_up.to(weight.dtype)
        if bias is not None:
            constant = _summed(lost) @ mean[gone] - _summed(made_up) @ mean[stays]
            bias += constant.to(bias.dtype)


def _with_ridge(gram: Tensor) -> Tensor:
    ridge = max(RIDGE * float(gram.diagonal().mean()), LEAST)
    return gram + ridge * torch.eye(len(gram), dtype=gram.dtype)


def _summed(weight: Tensor) -> Tensor:
    """(C_out, C_in) weights, summed over a kernel's taps."""
    return weight.flatten(2).sum(2) if weight.ndim > 2 else weight
