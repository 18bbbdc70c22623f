"""torchvision's ViT, with as many channels as its tokens have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer


class AnyWidthViT(VisionTransformer):  # type: ignore[misc]
    """It reshapes patches to the width of its class token, and not to what it was made with."""

    image_size: int

    @property
    def hidden_dim(self) -> int:
        return int(self.class_token.shape[-1])

    @hidden_dim.setter
    def hidden_dim(self, width: int) -> None:
        """What the constructor says, the token says as well."""

    def take_sides(self, sides: Sequence[int]) -> None:
        """From now on images have other sides: the positions of patches lie between the known ones.

        Raises:
            ValueError: the image is no square of whole patches.
        """
        side = sides[0]
        if len(set(sides)) > 1 or side % self.patch_size:
            raise ValueError(f"patches have sides of {self.patch_size}")
        known = self.encoder.pos_embedding.detach()
        before, after = self.image_size // self.patch_size, side // self.patch_size
        self.encoder.pos_embedding = nn.Parameter(_between(known, before, after))
        self.image_size, self.seq_length = side, 1 + after**2


def _between(positions: Tensor, before: int, after: int) -> Tensor:
    """(1, 1 + after^2, D) of (1, 1 + before^2, D): the class token's stays."""
    width = positions.shape[-1]
    grid = positions[:, 1:].transpose(1, 2).reshape(1, width, before, before)
    size = (after, after)
    grid = nn.functional.interpolate(grid, size=size, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
