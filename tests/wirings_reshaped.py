"""More small networks: channels that reshapes fold, masks and gates in between, heads of no use."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from wirings import Tokens, Wired


class Maxout(Wired):
    """The larger one of each two neighbours."""

    def build(self) -> None:
        self.both, self.out = nn.Conv2d(32, 64, 1), nn.Conv2d(32, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return self.out(self.both(x).view(n, -1, 2, h, w).max(2)[0])


class GatedHalves(Tokens):
    """Both halves of a layer, told apart by a dimension of their own."""

    def build(self) -> None:
        self.both, self.out = nn.Linear(48, 128), nn.Linear(64, 48)

    def mixed(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        gate, value = self.both(x).view(n, tokens, 2, -1).unbind(2)
        return self.out(nn.functional.silu(gate) * value)


class Unshuffle(Wired):
    """Pixels become channels."""

    def build(self) -> None:
        self.before, self.after = nn.Conv2d(32, 24, 1), nn.Conv2d(96, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.after(nn.functional.pixel_unshuffle(self.before(x), 2))


class Frames(Wired):
    """The rows of an image become steps in time, its columns features."""

    def build(self) -> None:
        self.before, self.after = nn.Conv2d(32, 24, 1), nn.Linear(24 * 16, 32)

    def middle(self, x: Tensor) -> Tensor:
        y = self.before(x)
        n, c, h, w = y.shape
        steps = self.after(y.transpose(1, 2).reshape(n, h, c * w))
        return steps.transpose(1, 2)[..., None]


class Masked(Wired):
    """A mask comes first in a product, and a condition in a choice."""

    def build(self) -> None:
        self.a, self.b, self.c = (nn.Conv2d(32, 32, 1) for _ in range(3))

    def middle(self, x: Tensor) -> Tensor:
        mask = (x.sum(1, keepdim=True) > 0).float()
        y = self.b(mask * torch.relu(self.a(x)))
        return self.c(y.masked_fill(mask < 0.5, 0.0))


class OverTheImage(Wired):
    """What every layer has made, and the image itself, side by side."""

    width = 3 + 16 + 24

    def build(self) -> None:
        self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(19, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, self.one(x)], 1)
        return self.last(torch.cat([both, self.two(both)], 1).mean((2, 3)))


class Same(Wired):
    """As many pixels as before, also of a kernel of even size and one that skips."""

    def build(self) -> None:
        self.odd = nn.Conv2d(32, 32, 3, padding="same")
        self.even = nn.Conv2d(32, 32, (3, 4), padding="same")
        self.apart = nn.Conv2d(32, 32, 3, padding="same", dilation=2)

    def middle(self, x: Tensor) -> Tensor:
        return self.apart(torch.relu(self.even(torch.relu(self.odd(x)))))


class Latents(Tokens):
    """A layer that reads what was learned instead of an input."""

    def build(self) -> None:
        self.learned = nn.Parameter(torch.randn(1, 48))
        self.one, self.two = nn.Linear(48, 64), nn.Linear(64, 48)

    def mixed(self, x: Tensor) -> Tensor:
        return x * self.two(torch.relu(self.one(self.learned)))[:, None]


class GateOfOne(Wired):
    """One number for each pixel weighs all channels."""

    def build(self) -> None:
        self.before, self.gate, self.after = (nn.Conv2d(32, width, 1) for width in (32, 1, 32))

    def middle(self, x: Tensor) -> Tensor:
        y = torch.relu(self.before(x))
        return self.after(y * torch.sigmoid(self.gate(y)))


class OneSlope(Wired):
    """One rectifier, with one slope, for layers of several widths."""

    width = 64

    def build(self) -> None:
        self.slope = nn.PReLU()
        self.a, self.b = nn.Conv2d(32, 48, 1), nn.Conv2d(48, 64, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.slope(self.b(self.slope(self.a(self.slope(x)))))


class Normed(Wired):
    """Weights that hooks compute, as it was done before there were parametrizations."""

    def build(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # there still are such networks
            self.a = weight_norm(nn.Conv2d(32, 48, 3, padding=1))
        self.b = spectral_norm(nn.Conv2d(48, 48, 1))
        self.c = prune.l1_unstructured(nn.Conv2d(48, 32, 1), "weight", 0.5)

    def middle(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class UnusedHead(Wired):
    """A head for training that runs all the time, and whose result nobody reads."""

    def build(self) -> None:
        self.inner = nn.Conv2d(32, 48, 1)
        self.auxiliary = nn.Sequential(nn.Conv2d(48, 16, 1), nn.ReLU(inplace=True))
        self.out = nn.Conv2d(48, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = torch.relu(self.inner(x))
        self.auxiliary(y)
        return self.out(y)


RESHAPED = {
    "maxout": (Maxout, frozenset({"stem.0", "both"})),
    "gated halves": (GatedHalves, frozenset({"both", "up"})),
    "unshuffle": (Unshuffle, frozenset({"stem.0", "before", "after"})),
    "frames": (Frames, frozenset({"stem.0", "before", "after"})),
    "masked": (Masked, frozenset({"stem.0", "a", "b", "c"})),
    "over the image": (OverTheImage, frozenset({"one", "two"})),
    "same": (Same, frozenset({"stem.0", "odd", "even", "apart"})),
    "latents": (Latents, frozenset({"one", "up"})),
    "gate of one": (GateOfOne, frozenset({"stem.0", "before", "after"})),
    "one slope": (OneSlope, frozenset({"stem.0", "a", "b"})),
    "hooks": (Normed, frozenset({"stem.0", "a", "b", "c"})),
    "unused head": (UnusedHead, frozenset({"stem.0", "inner", "out"})),
}
