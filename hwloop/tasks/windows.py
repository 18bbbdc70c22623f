"""Attention within parts of an image, of torchvision's Swin and MaxViT, in explicit layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hwloop.tasks.attention import ExplicitAttention, unflattened

FAR = -100.0
"""Added to the logits of pixels that a shifted window brings together from opposite edges."""


class WindowAttention(ExplicitAttention):
    """What torchvision's ``ShiftedWindowAttention`` computes, of both versions of Swin.

    The bias of two positions is a parameter for each pair; it was looked up by their distance, or
    computed from it.
    """

    def __init__(self, source: Any) -> None:
        super().__init__(
            width=source.proj.in_features,
            heads=source.num_heads,
            biases=source.qkv.bias is not None,
            dropout=source.attention_dropout,
        )
        self.window, self.shift = tuple(source.window_size), tuple(source.shift_size)
        self._take(source.qkv.weight, source.qkv.bias)
        self.projection = source.proj
        self.projection_dropout = nn.Dropout(source.dropout)
        with torch.no_grad():
            # (1, heads, tokens, tokens)
            self.position_bias = nn.Parameter(source.get_relative_position_bias().clone())
        self.logit_scale = getattr(source, "logit_scale", None)
        if self.logit_scale is not None and self.key.bias is not None:
            with torch.no_grad():  # the second version has no bias of keys
                self.key.bias.zero_()

    def keep_heads(self, kept: Sequence[int]) -> None:
        index = torch.tensor(list(kept))
        self.position_bias = nn.Parameter(self.position_bias.detach()[:, index])
        if self.logit_scale is not None:
            self.logit_scale = nn.Parameter(self.logit_scale.detach()[index])

    def forward(self, x: Tensor) -> Tensor:
        """(N, height, width, channels) to the same."""
        if self.channelwise:
            return self._by_channels(x)
        height, width = x.shape[1], x.shape[2]
        rows, columns = self.window
        padded = nn.functional.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        sizes = (padded.shape[1], padded.shape[2])
        shift = tuple(
            0 if window >= size else by
            for window, size, by in zip(self.window, sizes, self.shift, strict=True)
        )
        if any(shift):
            padded = torch.roll(padded, (-shift[0], -shift[1]), (1, 2))
        tokens = unflattened(unflattened(padded, 2, (-1, columns)), 1, (-1, rows)).transpose(2, 3)
        counts = tokens.shape[1:3]
        mixed = self._mixed(tokens.flatten(3, 4).flatten(0, 2), self._mask(sizes, shift))
        found = self.projection_dropout(self.projection(mixed))
        found = unflattened(unflattened(found, 1, (rows, columns)), 0, (-1, *counts))
        found = found.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if any(shift):
            found = torch.roll(found, (shift[0], shift[1]), (1, 2))
        return found[:, :height, :width]

    def _mixed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention within windows (N, tokens, channels)."""
        q, k, v = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        if self.logit_scale is None:
            logits = (q * self.head_channels**-0.5) @ k.transpose(-2, -1)
        else:
            normalized = nn.functional.normalize(k, dim=-1).transpose(-2, -1)
            scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
            logits = nn.functional.normalize(q, dim=-1) @ normalized * scale
        logits = logits + self.position_bias
        if mask is not None:
            logits = (unflattened(logits, 0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        mixed: Tensor = self.dropout(torch.softmax(logits, dim=-1)) @ v
        return mixed.transpose(1, 2).flatten(2)

    def _mask(self, sizes: tuple[int, ...], shift: tuple[int, ...]) -> Tensor | None:
        """(windows, tokens, tokens): what pixels from opposite edges are told of each other."""
        if not any(shift):
            return None
        part = torch.zeros(sizes, device=self.position_bias.device)
        for axis, (size, window, by) in enumerate(zip(sizes, self.window, shift, strict=True)):
            if by:
                place = torch.arange(size, device=part.device)
                along = (place >= size - window).float() + (place >= size - by).float()
                part = 3 * part + (along[:, None] if axis == 0 else along)
        rows, columns = self.window
        windows = unflattened(unflattened(part, 1, (-1, columns)), 0, (-1, rows)).transpose(1, 2)
        parts = windows.flatten(2, 3).flatten(0, 1)
        return torch.where(parts[:, None] == parts[:, :, None], 0.0, FAR)


class PartitionAttention(ExplicitAttention):
    """What torchvision's ``RelativePositionalMultiHeadAttention`` computes, as in MaxViT."""

    def __init__(self, source: Any) -> None:
        width = source.head_dim * source.n_heads
        super().__init__(width=width, heads=source.n_heads, biases=True, dropout=0.0)
        self._take(source.to_qkv.weight, source.to_qkv.bias)
        self.projection = source.merge
        self.scale = source.scale_factor
        with torch.no_grad():
            # (1, heads, tokens, tokens)
            self.position_bias = nn.Parameter(source.get_relative_positional_bias().clone())

    def keep_heads(self, kept: Sequence[int]) -> None:
        self.position_bias = nn.Parameter(self.position_bias.detach()[:, torch.tensor(list(kept))])

    def forward(self, x: Tensor) -> Tensor:
        """(N, partitions, tokens, channels) to the same."""
        if self.channelwise:
            return self._by_channels(x)
        partitions, tokens = x.shape[1], x.flatten(0, 1)
        q, k, v = (self._split(layer(tokens)) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(q @ (k * self.scale).transpose(-2, -1) + self.position_bias, dim=-1)
        found: Tensor = self.projection((weights @ v).transpose(1, 2).flatten(2))
        return unflattened(found, 0, (-1, partitions))
