"""Attention with a layer for each product by weights, so that each can be decided about.

Cutting whole heads is what the layers are for: ``query``, ``key`` and ``value`` give each head's
channels side by side, and ``projection`` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

BY_HEADS = ("query", "key", "value")
"""The layers of an attention whose output channels belong to heads."""


class ExplicitAttention(nn.Module):
    """A linear layer for each product by weights.

    Attributes:
        head_channels: of each head; how many heads there are, the layers' widths say.
        channelwise: while it is true, the channels of the three layers are added instead, which
            tells what is coupled and what is not; for following channels only.
    """

    projection: nn.Linear

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
        parts = [part for part in self.query.modules() if isinstance(part, nn.Linear)]
        return parts[-1].out_features // self.head_channels  # of two, where it is of low rank

    def keep_heads(self, kept: Sequence[int]) -> None:
        """Cut what there is once for each head; the layers have been cut."""

    def _by_channels(self, x: Tensor) -> Tensor:
        """What stands for self-attention while channels are followed."""
        found: Tensor = self.projection(self.query(x) + self.key(x) + self.value(x))
        return found

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
        return unflattened(x, -1, (self.heads, self.head_channels)).transpose(1, 2)


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
                unflattened(added, 0, (-1, self.heads)) if added.ndim == 3 else added
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


def unflattened(x: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    found: Tensor = x.unflatten(axis, sizes)  # type: ignore[no-untyped-call]
    return found


def _added(mask: Tensor) -> Tensor:
    """A mask as what is added to logits."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, -math.inf)
