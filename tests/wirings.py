"""Small networks, each with one way to wire layers that plain convolutions do not have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hwloop.compress import slices
from hwloop.compress.coupled import Coupling
from hwloop.compress.cut import cut, ranking


def _image(width: int = 32) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


class Wired(nn.Module):
    """An image, something in the middle, and a classifier."""

    width = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = _image()
        self.build()
        self.last = nn.Linear(self.width, 5)

    def build(self) -> None:
        raise NotImplementedError

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.stem(x)).mean((2, 3)))


class Concat(Wired):
    width = 56

    def build(self) -> None:
        self.left, self.right = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 24, 3, padding=1)
        self.third = nn.Conv2d(40, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x), self.right(x)], 1)
        return torch.cat([both, self.third(both)], 1)


class AddOfThree(Wired):
    def build(self) -> None:
        self.a, self.b, self.c = (nn.Conv2d(32, 32, 1) for _ in range(3))

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x) + self.b(x) + self.c(x))


class Shared(Wired):
    def build(self) -> None:
        self.inner, self.outer = nn.Conv2d(32, 24, 1), nn.Conv2d(24, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return x


class Grouped(Wired):
    def build(self) -> None:
        self.before = nn.Conv2d(32, 64, 1)
        self.grouped = nn.Conv2d(64, 64, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(64)
        self.after = nn.Conv2d(64, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.after(torch.relu(self.norm(self.grouped(torch.relu(self.before(x))))))


class GroupedWider(Wired):
    """Each group writes more channels than it reads."""

    width = 64

    def build(self) -> None:
        self.grouped = nn.Conv2d(32, 64, 3, padding=1, groups=4)

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(self.grouped(x))


class ShuffleUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(16, 48, 1),
            nn.BatchNorm2d(48),
            nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1, groups=48),
            nn.BatchNorm2d(48),
            nn.Conv2d(48, 16, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        both = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = both.shape
        return both.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class GroupNormed(Wired):
    def build(self) -> None:
        self.before, self.norm = nn.Conv2d(32, 48, 3, padding=1), nn.GroupNorm(6, 48)
        self.after = nn.Conv2d(48, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.after(torch.relu(self.norm(self.before(x))))


class Shuffle(Wired):
    def build(self) -> None:
        self.units = nn.Sequential(ShuffleUnit(), ShuffleUnit())
        self.after, self.out = nn.Conv2d(32, 64, 1), nn.Conv2d(64, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.after(self.units(x))))


class Chunk(Wired):
    """As in C2f: a layer's halves, one of which goes on."""

    width = 16

    def build(self) -> None:
        self.both = nn.Conv2d(32, 32, 1)
        self.inner = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 1))
        self.out = nn.Conv2d(48, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        left, right = self.both(x).chunk(2, dim=1)
        return self.out(torch.cat([left, right, self.inner(right)], 1))


class Bottlenecks(Wired):
    """As in C2f with shortcuts: a half and what is added to it, all side by side."""

    width = 24

    def build(self) -> None:
        self.both, self.norm = nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.inner, self.more = (
            nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 16, 1))
            for _ in range(2)
        )
        self.out = nn.Conv2d(64, 24, 1)

    def middle(self, x: Tensor) -> Tensor:
        parts = list(torch.nn.functional.silu(self.norm(self.both(x))).chunk(2, dim=1))
        for block in (self.inner, self.more):
            parts.append(parts[-1] + block(parts[-1]))
        return self.out(torch.cat(parts, 1))


class Quarters(Wired):
    """Halves of a half, and both beside what is whole."""

    width = 56

    def build(self) -> None:
        self.both, self.out = nn.Conv2d(32, 32, 1), nn.Conv2d(8, 24, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = torch.relu(self.both(x))
        first, second = y.chunk(2, dim=1)[0].chunk(2, dim=1)
        return torch.cat([self.out(first * second), y], 1)


class FlattenedHalves(Wired):
    """Halves of two layers side by side, with all their positions."""

    def build(self) -> None:
        self.left, self.right = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 24, 1)
        self.mid = nn.Linear(20 * 16, 32)

    def middle(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(x, 4)
        x = torch.cat([self.left(x).chunk(2, dim=1)[0], self.right(x).chunk(2, dim=1)[1]], 1)
        return torch.relu(self.mid(x.flatten(1)))[:, :, None, None]


class ShuffleOfNormed(Wired):
    """Channels in another order, of a norm over all of them."""

    def build(self) -> None:
        self.before, self.norm = nn.Conv2d(32, 48, 1), nn.GroupNorm(1, 48)
        self.after = nn.Conv2d(48, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.before(x)))
        n, c, h, w = y.shape
        return x + self.after(y.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w))


class SqueezeExcite(Wired):
    def build(self) -> None:
        self.conv = nn.Conv2d(32, 32, 3, padding=1)
        self.down, self.up = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.silu(self.conv(x))
        gate = self.up(torch.relu(self.down(y.mean((2, 3), keepdim=True))))
        return x + y * torch.sigmoid(gate)


class Tokens(nn.Module):
    """Patches of an image, as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 4, stride=4)
        self.norm = nn.LayerNorm(48)
        self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48)
        self.build()
        self.last = nn.Linear(48, 5)

    def build(self) -> None:
        raise NotImplementedError

    def mixed(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.mixed(self.norm(x))
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.last(x.mean(1))


class Heads(Tokens):
    """``nn.MultiheadAttention``, as torchvision's ViT has it."""

    def build(self) -> None:
        self.attention = nn.MultiheadAttention(48, 3, batch_first=True)

    def mixed(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class FusedQkv(Tokens):
    """One layer for queries, keys and values, as timm's ViT has it."""

    def build(self) -> None:
        self.qkv, self.out = nn.Linear(48, 144), nn.Linear(48, 48)

    def mixed(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, 3, width // 3).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * 4**-0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, tokens, width))


class ChunkOfTokens(Tokens):
    """Halves of one layer that gate each other, as in SwiGLU."""

    def build(self) -> None:
        self.wide, self.narrow = nn.Linear(48, 128), nn.Linear(64, 48)

    def mixed(self, x: Tensor) -> Tensor:
        gate, value = self.wide(x).chunk(2, dim=-1)
        return self.narrow(nn.functional.silu(gate) * value)


class LayerScale(Tokens):
    def build(self) -> None:
        self.scale = nn.Parameter(torch.rand(48))
        self.one = nn.Linear(48, 48)

    def mixed(self, x: Tensor) -> Tensor:
        return self.scale * torch.relu(self.one(x))


class Functional(Tokens):
    """A layer's weights, given to a function."""

    def build(self) -> None:
        self.one = nn.Linear(48, 48)

    def mixed(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.one.weight, self.one.bias)


class Signal(nn.Module):
    """Convolutions in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 32, 5, padding=2), nn.Conv1d(32, 48, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm1d(48)
        self.last = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x.flatten(2)))
        return self.last(torch.relu(self.norm(self.b(x))).mean(2))


class Transposed(Wired):
    def build(self) -> None:
        self.down = nn.Conv2d(32, 48, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(48, 32, 2, stride=2)
        self.after = nn.Conv2d(32, 32, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return self.after(torch.relu(self.up(torch.relu(self.down(x)))))


class Recurrent(Tokens):
    """An LSTM, which is left alone."""

    def build(self) -> None:
        self.lstm = nn.LSTM(48, 48, batch_first=True)

    def mixed(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Window(nn.Module):
    """torchvision's attention in shifted windows, with a bias for each pair of positions."""

    version = 1

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import swin_transformer as swin

        kind = swin.SwinTransformerBlock if self.version == 1 else swin.SwinTransformerBlockV2
        self.stem = nn.Conv2d(3, 48, 2, stride=2)
        self.blocks = nn.Sequential(
            *(
                kind(
                    48, 3, window_size=[4, 4], shift_size=[shift, shift], stochastic_depth_prob=0.0
                )
                for shift in (0, 2)
            )
        )
        self.last = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x).permute(0, 2, 3, 1))
        return self.last(x.mean((1, 2)))


class WindowV2(Window):
    version = 2


class Glu(Wired):
    """Halves that gate each other: one kernel, no layer."""

    def build(self) -> None:
        self.both, self.out = nn.Conv2d(32, 32, 1), nn.Conv2d(16, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.glu(self.both(x), dim=1))


class PixelShuffle(Wired):
    def build(self) -> None:
        self.wide, self.out = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(16, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.pixel_shuffle(self.wide(x), 2))


class ShuffleAlone(Wired):
    """Channels that are read in another order than they were written in."""

    def build(self) -> None:
        self.before, self.after = nn.Conv2d(32, 48, 1), nn.Conv2d(48, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = torch.relu(self.before(x))
        n, c, h, w = y.shape
        return x + self.after(y.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w))


class UNet(Wired):
    """What goes down comes up again, beside what stayed."""

    def build(self) -> None:
        self.enc = nn.Conv2d(32, 32, 3, padding=1)
        self.mid = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.up, self.dec = nn.ConvTranspose2d(64, 32, 2, stride=2), nn.Conv2d(64, 32, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enc(x))
        return self.dec(torch.cat([self.up(torch.relu(self.mid(x))), x], 1))


class Dilated(Wired):
    """As in DeepLab; it keeps what it saw, and numbers that are no weights."""

    def build(self) -> None:
        self.a = nn.Conv2d(32, 48, 3, padding=2, dilation=2)
        self.b = nn.Conv2d(48, 32, 3, padding=3, dilation=3)
        self.order = nn.Parameter(torch.arange(4), requires_grad=False)

    def middle(self, x: Tensor) -> Tensor:
        self.seen = torch.relu(self.a(x))
        return self.b(self.seen)


class Normed(Wired):
    """A group norm of one value for each channel."""

    def build(self) -> None:
        self.conv, self.norm = nn.Conv2d(32, 48, 1), nn.GroupNorm(4, 48)
        self.out = nn.Conv2d(48, 32, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.out(torch.relu(y)))


class HeadsOfOwn(Tokens):
    """Attention with so many heads, however wide, in torch's own function."""

    def build(self) -> None:
        self.query, self.key, self.value, self.out = (nn.Linear(48, 48) for _ in range(4))

    def mixed(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = (
            layer(x).view(n, tokens, 3, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(found.transpose(1, 2).reshape(n, tokens, -1))


class AttentionPool(Tokens):
    """One query that is learned."""

    def build(self) -> None:
        self.attention = nn.MultiheadAttention(48, 3, batch_first=True)
        self.asked = nn.Parameter(torch.randn(1, 1, 48))

    def mixed(self, x: Tensor) -> Tensor:
        return self.attention(self.asked.expand(len(x), -1, -1), x, x)[0]


class Queries(Tokens):
    """A few queries that are learned, whose answers are read side by side."""

    def build(self) -> None:
        self.attention = nn.MultiheadAttention(48, 3, batch_first=True)
        self.asked = nn.Parameter(torch.randn(1, 4, 48))
        self.read = nn.Linear(4 * 48, 48)

    def mixed(self, x: Tensor) -> Tensor:
        found = self.attention(self.asked.expand(len(x), -1, -1), x, x)[0]
        return self.read(found.flatten(1))[:, None]


class DenseBlock(Wired):
    """Norms that no convolution takes in, in front of layers that all read what was before."""

    width = 32 + 36 * 8

    def build(self) -> None:
        widths = range(32, self.width, 8)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.layers = nn.ModuleList(nn.Conv2d(width, 8, 1) for width in widths)

    def middle(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(torch.relu(norm(x)))], 1)
        return x


class WeightNormed(Tokens):
    def build(self) -> None:
        one = nn.utils.parametrizations.weight_norm(nn.Linear(48, 64))
        self.one, self.two = one, nn.Linear(64, 48)

    def mixed(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


NEVER = {
    "heads of its own": frozenset({"query", "key", "value"}),
    "unet": frozenset({"mid"}),
}
"""Groups whose width must not change: what reads them is no layer that is followed."""

WIRINGS: dict[str, tuple[Callable[[], nn.Module], frozenset[str]]] = {
    "concat": (Concat, frozenset({"stem.0", "left", "right", "third"})),
    "add of three": (AddOfThree, frozenset({"stem.0", "a"})),
    "shared": (Shared, frozenset({"stem.0", "inner"})),
    "grouped": (Grouped, frozenset({"stem.0", "before", "after"})),
    "grouped wider": (GroupedWider, frozenset()),
    "group norm": (GroupNormed, frozenset({"stem.0", "before"})),
    "shuffle": (Shuffle, frozenset({"units.0.branch.0", "units.1.branch.0", "after"})),
    "chunk": (Chunk, frozenset({"stem.0", "both", "inner.0", "inner.2", "out"})),
    "chunk of bottlenecks": (Bottlenecks, frozenset({"stem.0", "both", "inner.0", "more.0"})),
    "quarters": (Quarters, frozenset({"stem.0", "both"})),
    "flattened halves": (FlattenedHalves, frozenset({"stem.0", "left", "right", "mid"})),
    "shuffle of normed": (ShuffleOfNormed, frozenset({"stem.0", "before"})),
    "chunk of tokens": (ChunkOfTokens, frozenset({"stem", "wide", "up"})),
    "dense block": (DenseBlock, frozenset({"stem.0", *(f"layers.{i}" for i in range(36))})),
    "squeeze-excite": (SqueezeExcite, frozenset({"stem.0", "down"})),
    "heads": (Heads, frozenset({"attention.query", "up"})),
    "fused qkv": (FusedQkv, frozenset({"up"})),
    "layer scale": (LayerScale, frozenset({"up"})),
    "functional": (Functional, frozenset({"up"})),
    "signal": (Signal, frozenset({"a", "b"})),
    "transposed": (Transposed, frozenset({"stem.0", "after"})),
    "recurrent": (Recurrent, frozenset({"up"})),
    "glu": (Glu, frozenset({"stem.0", "both"})),
    "pixel shuffle": (PixelShuffle, frozenset({"stem.0", "wide"})),
    "shuffle alone": (ShuffleAlone, frozenset({"stem.0", "before"})),
    "unet": (UNet, frozenset({"stem.0", "enc", "dec"})),
    "dilated": (Dilated, frozenset({"stem.0", "a", "b"})),
    "normed": (Normed, frozenset({"stem.0", "conv"})),
    "heads of its own": (HeadsOfOwn, frozenset({"up"})),
    "attention pool": (AttentionPool, frozenset({"attention.query", "up"})),
    "queries": (Queries, frozenset({"attention.query", "attention.projection", "up"})),
    "weight norm": (WeightNormed, frozenset({"one", "up"})),
    "windows": (Window, frozenset({"blocks.0.attn.query", "blocks.1.attn.query"})),
    "windows of the second version": (WindowV2, frozenset({"blocks.0.attn.query"})),
}
"""Name → network, and the groups whose width can change at the least."""


def answers_as_if_nobody_read_what_went(
    dense: nn.Module, example: Tensor, found: Sequence[Coupling]
) -> None:
    """Cut to halves of all widths, a network answers so; norms over channels see others."""
    free = [item for item in found if item.prunable]
    assert free
    halves = ((item, item.channels // 2 // item.bundle * item.bundle) for item in free)
    widths = {item.layers[0]: width for item, width in halves}
    small, masked = copy.deepcopy(dense), copy.deepcopy(dense)
    cut(small, example, widths, dense=dense)
    order = ranking(dense, example, widths)
    numbered = ((item.layers[0], item.numbered_by(item.layers[0])) for item in free)
    slices.unread(masked, [(item.slices, order[path][widths[path] :]) for path, item in numbered])
    torch.testing.assert_close(small(example), masked(example))
