"""Attention that torch computes within one function, in layers that can be decided about.

A network is rewritten when it is loaded; it computes what it computed before. Cutting whole heads
is what the layers are for: ``query``, ``key`` and ``value`` give each head's channels side by side,
and ``projection`` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

BY_HEADS = ("query", "key", "value")
"""The layers of an attention whose output channels belong to heads."""

SWIN = "torchvision.models.swin_transformer"
SWIN_ATTENTIONS = ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")

FAR = -100.0
"""Added to the logits of pixels that a shifted window brings together from opposite edges."""


class ExplicitAttention(nn.Module):
    """A linear layer for each product by weights.

    Attributes:
        head_channels: of each head; how many heads there are, the layers' widths say.
        channelwise: while it is true, the channels of the three layers are added instead, which
            tells what is coupled and what is not; for following channels only.
    """

    def __init__(self, *, width: int, heads: int, biases: bool, dropout: float) -> None:
        super().__init__()
        self.head_channels = width // heads
        self.channelwise = False
        self.query = nn.Linear(width, width, bias=biases)
        self.key = nn.Linear(width, width, bias=biases)
        self.value = nn.Linear(width, width, bias=biases)
        self.dropout = nn.Dropout(dropout)

    @property
    def heads(self) -> int:
        return self.query.out_features // self.head_channels

    def keep_heads(self, kept: Sequence[int]) -> None:
        """Cut what there is once for each head; the layers have been cut."""

    def _take(self, weight: Tensor, bias: Tensor | None) -> None:
        """Weights (3 width, width) and biases of the three layers as one."""
        layers = (self.query, self.key, self.value)
        with torch.no_grad():
            for layer, part in zip(layers, weight.detach().chunk(3), strict=True):
                layer.weight.copy_(part)
            if bias is not None:
                for layer, part in zip(layers, bias.detach().chunk(3), strict=True):
                    layer.bias.copy_(part)

    def _split(self, x: Tensor) -> Tensor:
        """(N, tokens, channels) to (N, heads, tokens, head channels)."""
        return _unflattened(x, -1, (self.heads, self.head_channels)).transpose(1, 2)


class Attention(ExplicitAttention):
    """What ``nn.MultiheadAttention`` computes.

    Attributes:
        in_proj_bias: None, so that ``nn.TransformerEncoderLayer`` takes no kernel past this.
    """

    in_proj_bias = None

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__(
            width=source.embed_dim,
            heads=source.num_heads,
            biases=source.in_proj_bias is not None,
            dropout=source.dropout,
        )
        self.batch_first = source.batch_first
        self._take(source.in_proj_weight, source.in_proj_bias)
        self.projection = nn.Linear(
            source.embed_dim, source.embed_dim, bias=source.out_proj.bias is not None
        )
        self.projection.load_state_dict(source.out_proj.state_dict())

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs like the queries, and with ``need_weights`` the weights.

        Args:
            query, key, value: (N, tokens, channels), or (tokens, N, channels).
            key_padding_mask: (N, keys), true or -inf where a key is none.
            attn_mask: (queries, keys), or (N heads, queries, keys), likewise.
            average_attn_weights: over heads.
            is_causal: a hint beside ``attn_mask``.
        """
        if self.channelwise:
            read = (self.key(key) + self.value(value)).mean(int(self.batch_first), keepdim=True)
            return self.projection(self.query(query) + read), query.new_zeros(1)
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            self._split(layer(x))
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        logits = q @ k.transpose(-2, -1) / math.sqrt(self.head_channels)
        if attn_mask is not None:
            added = _added(attn_mask)
            logits = logits + (
                _unflattened(added, 0, (-1, self.heads)) if added.ndim == 3 else added
            )
        if key_padding_mask is not None:
            logits = logits + _added(key_padding_mask)[:, None, None]
        weights = torch.softmax(logits, dim=-1)
        mixed = self.dropout(weights) @ v
        found = self.projection(mixed.transpose(1, 2).flatten(2))
        if not self.batch_first:
            found = found.transpose(0, 1)
        shown = weights.mean(1) if average_attn_weights else weights
        return found, shown if need_weights else None


def _unflattened(x: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    found: Tensor = x.unflatten(axis, sizes)  # type: ignore[no-untyped-call]
    return found


def _added(mask: Tensor) -> Tensor:
    """A mask as what is added to logits."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, -math.inf)


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
            mixed: Tensor = self.query(x) + self.key(x) + self.value(x)
            shown: Tensor = self.projection_dropout(self.projection(mixed))
            return shown
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
        tokens = _unflattened(_unflattened(padded, 2, (-1, columns)), 1, (-1, rows)).transpose(2, 3)
        counts = tokens.shape[1:3]
        mixed = self._mixed(tokens.flatten(3, 4).flatten(0, 2), self._mask(sizes, shift))
        found = self.projection_dropout(self.projection(mixed))
        found = _unflattened(_unflattened(found, 1, (rows, columns)), 0, (-1, *counts))
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
            logits = (_unflattened(logits, 0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
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
        windows = _unflattened(_unflattened(part, 1, (-1, columns)), 0, (-1, rows)).transpose(1, 2)
        parts = windows.flatten(2, 3).flatten(0, 1)
        return torch.where(parts[:, None] == parts[:, :, None], 0.0, FAR)


def explicit(network: nn.Module) -> nn.Module:
    """The network, in place, with every attention that can be in explicit layers.

    One is left as it is where it has keys of another width than queries, or tokens of its own:
    neither is used for images. Weights that are computed from others in every run, as weight norm
    does, are computed once.
    """
    made: dict[nn.Module, ExplicitAttention] = {}
    for path, child in list(network.named_modules(remove_duplicate=False)):
        _compute_weights(child)
        if isinstance(child, nn.TransformerEncoder):
            child.use_nested_tensor = False  # it would look for the weights of one function
        found = made.get(child) or _explicit(child)
        if found is None:
            continue
        made[child] = found.train(child.training)
        if not path:
            return found
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, found)
    return network


def _compute_weights(child: nn.Module) -> None:
    if parametrize.is_parametrized(child):
        for name in list(child.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(child, name, leave_parametrized=True)


def _explicit(child: nn.Module) -> ExplicitAttention | None:
    if type(child) is nn.MultiheadAttention:
        plain = child.in_proj_weight is not None and child.bias_k is None
        return Attention(child) if plain and not child.add_zero_attn else None
    kind = type(child)
    if kind.__module__ == SWIN and kind.__name__ in SWIN_ATTENTIONS:
        return WindowAttention(child)
    return None
