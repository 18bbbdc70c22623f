"""Networks are rewritten when they are loaded: what they compute stays.

Attention that torch or torchvision compute within one function becomes layers that can be decided
about (:mod:`hwloop.tasks.attention`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from hwloop.tasks.attention import Attention, ExplicitAttention
from hwloop.tasks.windows import PartitionAttention, WindowAttention

BY_NAME: dict[tuple[str, str], Callable[[Any], ExplicitAttention]] = {
    ("torchvision.models.swin_transformer", "ShiftedWindowAttention"): WindowAttention,
    ("torchvision.models.swin_transformer", "ShiftedWindowAttentionV2"): WindowAttention,
    ("torchvision.models.maxvit", "RelativePositionalMultiHeadAttention"): PartitionAttention,
}
"""Module and class of what is rewritten; their own subclasses may compute something else."""


VIT = ("torchvision.models.vision_transformer", "VisionTransformer")


def explicit(network: nn.Module) -> nn.Module:
    """The network, in place, with every attention that can be in explicit layers.

    One is left as it is where it has keys of another width than queries, or tokens of its own:
    neither is used for images. Weights that are computed from others in every run, as weight norm
    does, are computed once.
    """
    made: dict[nn.Module, ExplicitAttention] = {}
    for path, child in list(network.named_modules(remove_duplicate=False)):
        _compute_weights(child)
        if (type(child).__module__, type(child).__name__) == VIT:
            child.__class__ = _any_width_vit()
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


def _any_width_vit() -> type[nn.Module]:
    from hwloop.tasks.vit import AnyWidthViT  # whoever has a ViT has loaded torchvision's models

    return AnyWidthViT


def _compute_weights(child: nn.Module) -> None:
    for hook in list(child._forward_pre_hooks.values()):  # as it was done before parametrizations
        if isinstance(hook, WeightNorm):
            remove_weight_norm(child, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(child, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(child, hook._tensor_name)  # type: ignore[no-untyped-call]
    if parametrize.is_parametrized(child):
        for name in list(child.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(child, name, leave_parametrized=True)


def _explicit(child: nn.Module) -> ExplicitAttention | None:
    kind = type(child)
    if isinstance(child, nn.MultiheadAttention) and kind is nn.MultiheadAttention:
        plain = child.in_proj_weight is not None and child.bias_k is None
        return Attention(child) if plain and not child.add_zero_attn else None
    make = BY_NAME.get((kind.__module__, kind.__name__))
    return None if make is None else make(child)
